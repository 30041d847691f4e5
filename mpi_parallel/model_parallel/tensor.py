"""Linear layers cut over the ranks of a tensor communicator (Shoeybi et al. 2019), and the loss over cut classes.

    ColumnParallelLinear   x whole       W = [ W_0 | W_1 ]     y_r = x W_r: no message; dx = sum of dy_r W_r^T
    RowParallelLinear      x = [x_0|x_1] W = [ W_0 ; W_1 ]     y = sum of x_r W_r;      dx_r = dy W_r^T: no message

They are ordinary layers. "Whole" arrays are the same on all ranks of the communicator. Letters of the shapes: B rows,
I inputs, O outputs, K classes, each those of this rank's slice where the layer is cut along them.
"""

from __future__ import annotations

from mpi_parallel.device import Array
from mpi_parallel.device.workspace import Workspace
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn import functional as F
from mpi_parallel.nn.layers import Backward, Linear
from mpi_parallel.nn.store import CORRECT, LOSS, ParameterStore


class ColumnParallelLinear(Linear):
    """y = x W + b, or relu of it, for this rank's slice of the outputs; x is whole."""

    def __init__(self, ws: Workspace, store: ParameterStore, number: int, relu: bool, comm: Communicator) -> None:
        super().__init__(ws, store, number, relu)
        self.comm = comm

    def forward(self, x_BI: Array, keys: Array | None = None) -> tuple[Array, Backward]:
        y_BO = F.linear(self.ws, x_BI, self.W.factor, self.bias, self.relu)

        def backward(dy_BO: Array) -> Array:
            if self.relu:
                dy_BO = F.relu_gradient(self.ws, dy_BO, y_BO)
            if self.first:
                self.weight_gradient(x_BI, dy_BO)
                return dy_BO
            dx_BI = F.linear_input_gradient(self.ws, dy_BO, self.W.factor, partial=True)
            sum_of_dx = self.comm.begin_sum(dx_BI)  # travels while dW is computed
            self.weight_gradient(x_BI, dy_BO)
            sum_of_dx.wait()
            return self.ws.narrowed(dx_BI)

        return y_BO, backward


class RowParallelLinear:
    """y = x W + b, or relu of it, from this rank's slice of the inputs; y is whole.

    The first rank alone has the bias, so each of the network's weights is on one rank. As the first layer of a network
    it is given whole images and looks at its columns of them.
    """

    def __init__(
        self, ws: Workspace, store: ParameterStore, number: int, relu: bool, comm: Communicator, inputs: range
    ) -> None:
        """`inputs` are the rows of the whole W that this rank has."""
        self.ws, self.store, self.relu, self.comm, self.first = ws, store, relu, comm, number == 0
        self.W, self.b = store.parameters[f"W{number}"], store.parameters.get(f"b{number}")
        self.parameters = (self.W,) if self.b is None else (self.W, self.b)
        self.inputs = slice(inputs.start, inputs.stop)

    def forward(self, x_BI: Array, keys: Array | None = None) -> tuple[Array, Backward]:
        if self.first:
            x_BI = x_BI[:, self.inputs]
        y_BO = F.product(self.ws, x_BI, self.W.factor)
        if self.b is not None:
            self.ws.kernels.bias(y_BO, self.b.value, False)
        self.comm.sum(y_BO)
        if self.relu:
            y_BO = F.relu(self.ws, y_BO)

        def backward(dy_BO: Array) -> Array:
            if self.relu:
                dy_BO = F.relu_gradient(self.ws, dy_BO, y_BO)
            db_O = None if self.b is None else self.b.gradient
            F.linear_weight_gradient(self.ws, x_BI, dy_BO, self.W.gradient, db_O, self.store.accumulating)
            if self.first:
                return dy_BO
            return F.linear_input_gradient(self.ws, dy_BO, self.W.factor)

        return y_BO, backward


def split_cross_entropy(
    ws: Workspace, z_BK: Array, t_B: Array, tail: Array, classes: range, comm: Communicator
) -> Array:
    """As functional.softmax_cross_entropy, for logits z of these classes alone, the others' on the ranks of `comm`.

    z, in place, becomes dz = softmax(z) - onehot(t); tail[LOSS] and tail[CORRECT] grow by the same on all ranks. With
    the largest logit m of a row and s = sum over all classes of exp(z - m), the loss is log s - (z_t - m). Two messages
    of B and 3 B numbers carry m, then s, z_t - m and who is right: the logits stay where they are.
    """
    xp, rows_B = ws.xp, ws.xp.arange(len(t_B))
    local_B = t_B.astype("int64") - classes.start
    mine_B = (local_B >= 0) & (local_B < len(classes))
    local_B = xp.where(mine_B, local_B, 0)
    guess_B = z_BK.argmax(axis=1)
    own_B = z_BK[rows_B, guess_B]
    largest_B = own_B.copy()
    comm.largest(largest_B)

    z_BK -= largest_B[:, None]
    sums_3B = ws.empty((3, len(t_B)))
    sums_3B[1] = xp.where(mine_B, z_BK[rows_B, local_B], 0)
    xp.exp(z_BK, out=z_BK)
    xp.sum(z_BK, axis=1, out=sums_3B[0])
    # The first of equal largest logits is the guess: 1 where it is the target, -1 for each rank with one before.
    leads_B = own_B == largest_B
    sums_3B[2] = 1.0 * (leads_B & mine_B & (guess_B == local_B)) - (leads_B & (t_B >= classes.stop))
    comm.sum(sums_3B)

    sum_B, of_target_B, right_B = sums_3B
    z_BK /= sum_B[:, None]
    z_BK[rows_B, local_B] -= mine_B
    tail[LOSS] += (xp.log(sum_B) - of_target_B).sum()
    tail[CORRECT] += (right_B == 1).sum()
    return z_BK
