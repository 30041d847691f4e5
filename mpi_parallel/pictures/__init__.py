"""Pictures of runs, drawn with matplotlib from what runs leave in their folders; and the page that shows them."""
