"""The canonical graph as plain data: tensors and operators of a model, with TFLite's operators.

Every source becomes one, and every deployable is written from one. Channels are last, as in TFLite.
A tensor keeps the name that it has in its source. Names are the keys: the same name always means
the same tensor.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from edgekit.base.errors import InvalidModelError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Tensor:
    """One tensor.

    Attributes:
        name: Its key in :attr:`Graph.tensors`.
        shape: Sizes, batch 1; ``()`` of a scalar.
        dtype: Dtype of its values.
        value: What is stored in the file, or None where it is fed or computed. Not to be changed in
            place.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    value: Array | None = None


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        kind: TFLite's name, e.g. ``CONV_2D``.
        inputs: Names of tensors, constants too; an input that is left out is ``""``.
        outputs: Names of tensors.
        options: TFLite's options by their names in its schema, e.g. ``strideH``.
        form: Name of the table in the schema that holds the options; ``""`` without any.
        version: Version of the operator in TFLite, which grows with what is asked of it.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    form: str = ""
    version: int = 1

    @property
    def output(self) -> str:
        """The first output, which names the operator."""
        return self.outputs[0]

    @property
    def activation(self) -> str:
        """What is fused behind it: ``NONE``, ``RELU``, ``RELU6``, ``RELU_N1_TO_1``, ``TANH``."""
        return ACTIVATIONS[int(self.options.get("fusedActivationFunction", 0))]

    def having(self, **options: Any) -> Operator:
        """The same with other options."""
        return replace(self, options={**self.options, **options})


ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")


class _Reads(Protocol):
    """An operator of any kind of graph."""

    @property
    def inputs(self) -> tuple[str, ...]: ...


Reader = TypeVar("Reader", bound=_Reads)


def readers(operators: Iterable[Reader]) -> dict[str, list[Reader]]:
    """Operators by the name of each tensor that they read, in order of execution."""
    by_tensor: dict[str, list[Reader]] = {}
    for operator in operators:
        for name in dict.fromkeys(operator.inputs):
            if name:
                by_tensor.setdefault(name, []).append(operator)
    return by_tensor


def free_name(name: str, used: Container[str]) -> str:
    """``name``, or what is made from it where that is taken or empty."""
    if name and name not in used:
        return name
    number = 1
    while f"{name}__{number}" in used:
        number += 1
    return f"{name}__{number}"


class Graph:
    """Tensors, and operators in order of execution.

    Attributes:
        tensors: By name.
        operators: In order of execution.
        inputs: Tensor by the name that the signature gives to an input, in the order of the file.
        outputs: The same of the outputs; two names may stand for one tensor.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        operators: list[Operator],
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
    ) -> None:
        self.tensors = dict(tensors)
        self.operators = list(operators)
        self.inputs = dict(inputs)
        self.outputs = dict(outputs)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.tensors[name].shape

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is stored; False of an input that is left out."""
        return name in self.tensors and self.tensors[name].value is not None

    def constant(self, name: str) -> Array:
        """A stored tensor.

        Raises:
            InvalidModelError: If it is computed.
        """
        value = self.tensors[name].value
        if value is None:
            raise InvalidModelError(f"expected {name} to be stored, it is computed")
        return value

    def fed(self, operator: Operator) -> tuple[str, ...]:
        """What an operator computes on: its inputs that are not stored, each once."""
        names = dict.fromkeys(name for name in operator.inputs if name)
        return tuple(name for name in names if not self.is_constant(name))

    def makers(self) -> dict[str, Operator]:
        """Operator by the name of each tensor that it writes."""
        return {name: operator for operator in self.operators for name in operator.outputs}

    def readers(self) -> dict[str, list[Operator]]:
        """Operators by the name of each tensor that they read, in order of execution."""
        return readers(self.operators)

    def put(self, tensor: Tensor) -> str:
        """Add a tensor, or replace the one of its name; returns the name."""
        self.tensors[tensor.name] = tensor
        return tensor.name

    def set_value(self, name: str, value: Array) -> None:
        """Replace what is stored by values of the same shape and dtype.

        Raises:
            ValueError: If shape or dtype differ.
        """
        tensor = self.tensors[name]
        if value.shape != tensor.shape or value.dtype != tensor.dtype:
            raise ValueError(
                f"{name}: expected {tensor.dtype} {tensor.shape}, got {value.dtype} {value.shape}"
            )
        self.tensors[name] = replace(tensor, value=value)

    def add_constant(self, name: str, value: Array) -> str:
        """Store values under a name of their own, made from ``name``; returns it."""
        return self.put(Tensor(self.free_name(name), value.shape, value.dtype, value))

    def free_name(self, name: str) -> str:
        """``name``, or what is made from it where that is taken."""
        return free_name(name, self.tensors)

    def rename(self, names: Mapping[str, str]) -> None:
        """Give tensors other names; one that has such a name already gets another."""
        clashing = set(names.values()) & set(self.tensors) - set(names)
        renamed = {**{name: self.free_name(name) for name in clashing}, **names}

        def new(name: str) -> str:
            return renamed.get(name, name)

        self.tensors = {new(n): replace(t, name=new(n)) for n, t in self.tensors.items()}
        self.operators = [
            replace(o, inputs=tuple(map(new, o.inputs)), outputs=tuple(map(new, o.outputs)))
            for o in self.operators
        ]
        self.inputs = {key: new(name) for key, name in self.inputs.items()}
        self.outputs = {key: new(name) for key, name in self.outputs.items()}

    def drop_unused(self) -> None:
        """Take out operators whose outputs nothing reads, and tensors that nothing uses."""
        needed = set(self.outputs.values())
        kept: list[Operator] = []
        for operator in reversed(self.operators):
            if not operator.outputs or needed.intersection(operator.outputs):
                kept.append(operator)
                needed.update(operator.inputs)
        self.operators = kept[::-1]
        used = {*self.inputs.values(), *self.outputs.values()}
        for operator in self.operators:
            used.update((*operator.inputs, *operator.outputs))
        self.tensors = {name: tensor for name, tensor in self.tensors.items() if name in used}

    def part(self, operator: Operator) -> Graph:
        """A graph of one operator, whose constants come along; what it computes on is fed."""
        names = [name for name in dict.fromkeys((*operator.inputs, *operator.outputs)) if name]
        fed = self.fed(operator)
        return Graph(
            {name: self.tensors[name] for name in names},
            [operator],
            dict(zip(fed, fed, strict=True)),
            dict(zip(operator.outputs, operator.outputs, strict=True)),
        )
