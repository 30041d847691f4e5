"""The matrix products of a layer, by an array module and the kernels beside it."""

from __future__ import annotations

from types import ModuleType

from mpi_parallel.device.interface import Array


class Products:
    """Forward and backward of y = x W + b. Arrays are float32, their rows contiguous; letters as in expressions.py."""

    xp: ModuleType

    def mask_bytes(self, width: int) -> int:
        """What a row of so many units takes of a mask that `linear` makes for `input_gradient`; 0: none is made."""
        return 0

    def linear(
        self, x_BI: Array, W_IO: Array, b_O: Array | None, y_BO: Array, relu: bool, mask: Array | None = None
    ) -> None:
        """y = x W + b, then max(y, 0) where relu is asked for; `mask` then keeps where it is positive."""
        self.xp.matmul(x_BI, W_IO, out=y_BO)
        if b_O is not None:
            self.bias(y_BO, b_O, relu)

    def input_gradient(
        self, dy_BO: Array, W_IO: Array, dx_BI: Array, x_BI: Array | None = None, mask: Array | None = None
    ) -> None:
        """dx = dy W^T; where x, the output of a relu with this mask, is given, the gradient of that relu's input."""
        self.xp.matmul(dy_BO, W_IO.T, out=dx_BI)
        if x_BI is not None:
            self.relu_gradient(dx_BI, x_BI)

    def weight_gradient(self, x_BI: Array, dy_BO: Array, dW_IO: Array, db_O: Array | None, add: bool) -> None:
        """dW = x^T dy and db = the sum of dy over the rows, or added to what is there; no db where None is given."""
        if add:
            self.add_product(x_BI, dy_BO, dW_IO)
        else:
            self.xp.matmul(x_BI.T, dy_BO, out=dW_IO)
        if db_O is not None:
            self.column_sums(dy_BO, db_O, add)

    def add_product(self, a_BI: Array, b_BO: Array, c_IO: Array) -> None:
        """c += a^T b; the rows of each are contiguous."""
        c_IO += self.xp.matmul(a_BI.T, b_BO)

    def bias(self, y_BO: Array, b_O: Array, relu: bool) -> None:
        raise NotImplementedError

    def relu_gradient(self, dy: Array, y: Array) -> None:
        raise NotImplementedError

    def column_sums(self, a_BO: Array, sums_O: Array, add: bool) -> None:
        raise NotImplementedError
