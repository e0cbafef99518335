"""Device profiles: the conditions that a device's integer kernels need, as data.

A profile decides which numbers are written and which options the runtime gets. It has no code of
its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from edgekit.base import words
from edgekit.graph import kernels, micro
from edgekit.quantization.equalize import Evened
from edgekit.records import environment
from edgekit.records.results import Environment
from edgekit.records.schemes import PRECISIONS, SCHEMES, USUAL


@dataclass(frozen=True)
class DeviceProfile:
    """What to write for a kind of device.

    Attributes:
        name: As ``--device`` takes it.
        about: One line for people.
        precisions: What can be exported for it, by target.
        symmetric: Activations have zero_point 0.
        activations: dtype that activations are decided for; with float32 weights alone become
            integers.
        weights: dtype that weights of layers are decided for.
        onnx_activations: ``uint8`` or ``int8``, the dtype in ONNX; TFLite has int8 always.
        onnx_bias: Whether ONNX gets int32 biases; else they stay float.
        paired: Kinds of layers whose products with integers onnxruntime adds; default all.
        evened: What channels are equalized for: values that are rounded to 8 bits between layers,
            or else the weights.
        pair_bound: Whether weights have to keep pairs of products within int16, since a kernel of
            the device adds them there with saturation (edgekit.quantization.saturation).
        provider: The execution provider of onnxruntime that serves it.
        runtime_options: Options which the runtime needs, by target.
        lacks: Operators of TFLite that edgekit writes and that have no kernel there.
    """

    name: str
    about: str
    precisions: Mapping[str, tuple[str, ...]]
    symmetric: bool = False
    activations: Literal["int8", "int16", "float32"] = "int8"
    weights: Literal["int8", "int4"] = "int8"
    onnx_activations: Literal["uint8", "int8"] = "uint8"
    onnx_bias: bool = True
    paired: frozenset[str] | None = None
    evened: Evened = "activations"
    pair_bound: bool = False
    provider: str = "CPUExecutionProvider"
    runtime_options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    lacks: frozenset[str] = frozenset()

    def cannot_saturate(self, precision: str) -> bool:
        """Whether onnxruntime computes the exact sums on x86 without VNNI too: pairs of products
        are kept within int16, or activations stay int8 there, whose kernels add in 32 bits. Those
        of int8-dynamic are uint8, on whatever device."""
        if SCHEMES[precision].dynamic:
            return self.pair_bound
        stays = self.runtime_options.get("onnx", {}).get("session.qdqisint8allowed") == "1"
        return self.pair_bound or (self.onnx_activations == "int8" and stays)

    def deciding(self, precision: str) -> DeviceProfile:
        """What the integers of a precision are decided by: int16 has zero_point 0 and no bound,
        since only TFLite has it, whose kernels do not saturate; nor has what multiplies real
        numbers."""
        scheme = SCHEMES[precision]
        if scheme.activations == "int16":
            none = replace(self, paired=frozenset(), pair_bound=False, evened="weights")
            return replace(none, symmetric=True, activations="int16")
        if scheme.ranges:
            return self
        paired = kernels.DYNAMIC["onnx"] if scheme.dynamic else frozenset[str]()
        bound = self.pair_bound and scheme.dynamic
        weights: Literal["int8", "int4"] = "int4" if scheme.weights == "int4" else "int8"
        evened: Evened = "activations" if scheme.dynamic else "weights"
        return replace(
            self,
            activations="float32",
            weights=weights,
            paired=paired,
            pair_bound=bound,
            evened=evened,
        )

    def options(self, target: str, precision: str) -> dict[str, str]:
        """Options that the runtime of a target needs for a file of a precision on the device."""
        own = SCHEMES[precision].runtime_options.get(target, {})
        return {**own, **self.runtime_options.get(target, {})}


_CPU = {
    target: tuple(precision for precision in PRECISIONS if target not in SCHEMES[precision].refused)
    for target in ("tflite", "onnx")
}
#: TensorFlow Lite Micro has no kernels of float16, of 4-bit weights in all layers, and of int8
#: weights beside float activations.
_MICRO = {"tflite-micro": ("float32", "int8", "int16x8")}

PROFILES: dict[str, DeviceProfile] = {
    profile.name: profile
    for profile in (
        DeviceProfile(
            "generic",
            "any CPU; nothing saturates, with or without VNNI",
            _CPU | _MICRO,
            pair_bound=True,
        ),
        DeviceProfile(
            "x86-avx2",
            "x86 without VNNI: onnxruntime adds pairs of products in saturating 16 bits",
            _CPU,
            pair_bound=True,
        ),
        DeviceProfile(
            "x86-vnni",
            "x86 with AVX-VNNI, AVX512-VNNI or AMX: products are added in 32 bits",
            _CPU,
        ),
        DeviceProfile(
            "arm64",
            "64-bit ARM, with or without dot product: nothing saturates; int8 activations in ONNX",
            # Run as Cortex-A76 and A72 by qemu: onnxruntime has QLinear kernels of uint8 and of
            # int8 activations there, and of int8-dynamic, and all of them add in 32 bits.
            _CPU,
            onnx_activations="int8",
            # on ARM the default; elsewhere onnxruntime would compute int8 activations in float
            runtime_options={"onnx": {"session.qdqisint8allowed": "1"}},
        ),
        DeviceProfile(
            "tflite-micro",
            "microcontrollers through TensorFlow Lite Micro: products are added in 32 bits",
            {"tflite": _MICRO["tflite-micro"], **_MICRO},
            lacks=kernels.INTEGER - micro.RESOLVER.keys(),
        ),
        DeviceProfile(
            "cuda",
            "NVIDIA through onnxruntime's CUDA provider, which has no integer convolution",
            {"onnx": ("float32", "float16")},
            provider="CUDAExecutionProvider",
        ),
        DeviceProfile(
            "tensorrt",
            "NVIDIA through TensorRT: int8 with zero_point 0 only, biases in float",
            {"onnx": USUAL},
            symmetric=True,
            onnx_activations="int8",
            onnx_bias=False,
            provider="TensorrtExecutionProvider",
        ),
    )
}
DEFAULT = "generic"
NAMES = (*PROFILES, "auto")


def profile(name: str, machine: Environment | None = None) -> DeviceProfile:
    """Look a profile up; ``auto`` takes the one of this machine's CPU.

    Args:
        name: One of :data:`NAMES`.
        machine: Instead of the running one, for ``auto``.

    Raises:
        InvalidOptionError: If there is no such profile.
    """
    if name == "auto":
        isa = (machine or environment.describe()).isa
        if "asimd" in isa:
            return PROFILES["arm64"]
        if any(flag in isa for flag in environment.VNNI):
            return PROFILES["x86-vnni"]
        return PROFILES["x86-avx2" if "avx2" in isa else "generic"]
    words.one_of("device", name, NAMES)
    return PROFILES[name]
