"""Readers of other people's files: IDX, CSV, NPZ, folders of pictures and HDF5, all behind the protocol of `source`."""

from mpi_parallel.data_parallel.formats.idx import idx_header, read_idx

__all__ = ["idx_header", "read_idx"]
