"""C and C++ of a TFLite file for TensorFlow Lite Micro.

The files name no path and no time: the same model gives the same bytes. What a model calls its
tensors is somebody else's text, and stands in comments only, letter by letter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.data.feeds import Feed
from edgekit.graph.micro import ALIGNMENT, Operators
from edgekit.records.signature import TensorSpec

#: Types of C by dtype.
_TYPES = {
    "float32": "float",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "bool": "uint8_t",
}
_PER_LINE = 12


@dataclass(frozen=True)
class Vectors:
    """Samples that a device can be tested with.

    Attributes:
        inputs: Stored inputs ``[N, ...]`` by name.
        outputs: Stored outputs ``[N, ...]`` by name.
        kernels: What computed the outputs, in words.
    """

    inputs: Feed
    outputs: Feed
    kernels: str


def files(
    content: bytes,
    operators: Operators,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    vectors: Vectors,
    *,
    name: str,
    arena: int | None,
) -> dict[str, bytes]:
    """Everything beside ``model.tflite``, by the name of the file.

    Args:
        content: The TFLite file.
        operators: What it asks for.
        inputs: Of the file, in its order.
        outputs: The same.
        vectors: For ``golden.h``.
        name: Of the model, for comments.
        arena: Bytes of the arena on a 64-bit CPU; None if that is not known.
    """
    text = {
        "model.h": header(name, arena),
        "model.c": array(content, name),
        "resolver.h": resolver(operators, name),
        "golden.h": golden(inputs, outputs, vectors, name),
        "main.cc": _MAIN,
        "CMakeLists.txt": _CMAKE,
    }
    return {file: each.encode("ascii") for file, each in text.items()}


def header(name: str, arena: int | None) -> str:
    """``model.h``: the array, its length, and how large the arena has to be."""
    said = (
        "/* Not known: tflite-micro was not installed where this was written. Define it. */"
        if arena is None
        else "/* Bytes of the arena with the reference kernels of TensorFlow Lite Micro and 64-bit "
        "pointers.\n   A 32-bit CPU needs less; kernels that are made for a CPU may need more. */"
        f"\n#ifndef MODEL_ARENA_BYTES\n#define MODEL_ARENA_BYTES {arena}\n#endif"
    )
    return f"""/* {_plain(name)}, written by edgekit. */
#ifndef EDGEKIT_MODEL_H_
#define EDGEKIT_MODEL_H_

#ifdef __cplusplus
extern "C" {{
#endif

/* model.tflite, byte by byte, aligned to {ALIGNMENT}. */
extern const unsigned char g_model[];
extern const unsigned int g_model_len;

#ifdef __cplusplus
}}
#endif

{said}

#endif
"""


def array(content: bytes, name: str) -> str:
    """``model.c``: the TFLite file as a constant."""
    numbers = [f"0x{byte:02x}" for byte in content]
    return f"""/* {_plain(name)}, written by edgekit. */
#include "model.h"

#if defined(__GNUC__) || defined(__clang__)
__attribute__((aligned({ALIGNMENT})))
#elif defined(__cplusplus)
alignas({ALIGNMENT})
#else
_Alignas({ALIGNMENT})
#endif
const unsigned char g_model[] = {{
{_lines(numbers)}
}};
const unsigned int g_model_len = {len(content)}u;
"""


def resolver(operators: Operators, name: str) -> str:
    """``resolver.h``: links the kernels of the model, and no others."""
    calls = operators.calls
    used = ", ".join(f"{count} {_plain(kind)}" for kind, count in operators.counts.items())
    added = "\n".join(
        f"  if (resolver.{call}() != kTfLiteOk) return kTfLiteError;" for call in calls
    )
    return f"""// The operators of {_plain(name)}: {used}.
#ifndef EDGEKIT_RESOLVER_H_
#define EDGEKIT_RESOLVER_H_

#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

namespace edgekit {{

using Resolver = tflite::MicroMutableOpResolver<{len(calls)}>;

inline TfLiteStatus AddOperators(Resolver& resolver) {{
{added}
  return kTfLiteOk;
}}

}}  // namespace edgekit

#endif
"""


def golden(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], vectors: Vectors, name: str
) -> str:
    """``golden.h``: inputs as the model stores them, and the outputs that they give."""
    count = len(next(iter(vectors.inputs.values())))
    parts = [
        f"/* Test vectors of {_plain(name)}.\n   The outputs are those of "
        f"{_plain(vectors.kernels)}. */",
        "#ifndef EDGEKIT_GOLDEN_H_\n#define EDGEKIT_GOLDEN_H_\n\n#include <stdint.h>\n",
        f"#define GOLDEN_COUNT {count}",
        f"#define GOLDEN_INPUTS {len(inputs)}\n#define GOLDEN_OUTPUTS {len(outputs)}\n",
    ]
    for side, specs, values in (
        ("input", inputs, vectors.inputs),
        ("output", outputs, vectors.outputs),
    ):
        for place, spec in enumerate(specs):
            parts.append(_table(f"golden_{side}_{place}", spec, values[spec.name]))
    for side, specs in (("input", inputs), ("output", outputs)):
        rows = ", ".join(
            f"{{(const void*)golden_{side}_{place}, sizeof(golden_{side}_{place}[0])}}"
            for place in range(len(specs))
        )
        parts.append(
            f"/* Values of each {side}, one sample after the other, and the bytes of a sample. */\n"
            f"static const struct {{\n  const void* values;\n  unsigned int bytes;\n}} "
            f"golden_{side}s[GOLDEN_{side.upper()}S] = {{{rows}}};\n"
        )
    return "\n".join([*parts, "#endif\n"])


def _table(name: str, spec: TensorSpec, values: npt.NDArray[np.generic]) -> str:
    """One tensor of all samples as a constant of C."""
    rows = values.reshape(len(values), -1)
    scaled = "" if spec.scale is None else f", (q - {spec.zero_point}) * {spec.scale!r}"
    sizes = "x".join(str(max(size, 1)) for size in spec.shape) or "1"
    body = "},\n  {".join("\n" + _lines([_number(each) for each in row], "   ") for row in rows)
    return (
        f"/* {_plain(spec.name)}: {spec.dtype} {sizes}{scaled} */\n"
        f"static const {_TYPES[spec.dtype]} {name}[GOLDEN_COUNT][{rows.shape[1]}] = {{\n"
        f"  {{{body}}}\n}};\n"
    )


def _number(value: np.generic) -> str:
    if value.dtype.kind == "f":
        return f"{float(value).hex()}f"
    return "INT64_MIN" if value == np.iinfo(np.int64).min else str(int(value))


def _lines(numbers: Sequence[str], indent: str = " ") -> str:
    """Numbers with commas between them, some in a line."""
    return ",\n".join(
        f"{indent} {', '.join(numbers[start : start + _PER_LINE])}"
        for start in range(0, len(numbers), _PER_LINE)
    )


def _plain(text: str) -> str:
    """Text that ends no comment and continues no line."""
    return re.sub(r"[^A-Za-z0-9 _.,:;()\[\]/=-]", "_", text).replace("//", "/")


_MAIN = r"""// Runs the model on the test vectors; the exit status is how many have other outputs.
#include <cstdio>
#include <cstdint>
#include <cstring>

#include "golden.h"
#include "model.h"
#include "resolver.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"

#ifndef MODEL_ARENA_BYTES
#error "define MODEL_ARENA_BYTES, the bytes of the arena"
#endif

namespace {
alignas(16) uint8_t arena[MODEL_ARENA_BYTES];
}

int main() {
  tflite::InitializeTarget();
  static edgekit::Resolver resolver;
  if (edgekit::AddOperators(resolver) != kTfLiteOk) return 101;
  static tflite::MicroInterpreter interpreter(tflite::GetModel(g_model), resolver, arena,
                                              sizeof(arena));
  if (interpreter.AllocateTensors() != kTfLiteOk) return 102;
  int wrong = 0;
  for (unsigned int sample = 0; sample < GOLDEN_COUNT; ++sample) {
    for (unsigned int i = 0; i < GOLDEN_INPUTS; ++i) {
      TfLiteTensor* input = interpreter.input(i);
      if (input->bytes != golden_inputs[i].bytes) return 103;
      memcpy(input->data.raw,
             static_cast<const uint8_t*>(golden_inputs[i].values) + sample * golden_inputs[i].bytes,
             golden_inputs[i].bytes);
    }
    if (interpreter.Invoke() != kTfLiteOk) return 104;
    bool equal = true;
    for (unsigned int i = 0; i < GOLDEN_OUTPUTS; ++i) {
      const TfLiteTensor* output = interpreter.output(i);
      const unsigned int bytes = golden_outputs[i].bytes;
      equal = equal && output->bytes == bytes &&
              memcmp(output->data.raw,
                     static_cast<const uint8_t*>(golden_outputs[i].values) + sample * bytes,
                     bytes) == 0;
    }
    if (!equal) ++wrong;
  }
  printf("%d of %d samples have other outputs; %u bytes of the arena are used\n", wrong,
         GOLDEN_COUNT, static_cast<unsigned int>(interpreter.arena_used_bytes()));
  return wrong;
}
"""

_CMAKE = """# Builds main.cc against a checkout of github.com/tensorflow/tflite-micro:
#
#   make -C TFLM_DIR -f tensorflow/lite/micro/tools/make/Makefile microlite
#   cmake -B build -DTFLM_DIR=TFLM_DIR && cmake --build build && build/golden
#
# For another CPU, give make its TARGET, TARGET_ARCH and OPTIMIZED_KERNEL_DIR, and cmake a toolchain
# file and TFLM_LIBRARY.
cmake_minimum_required(VERSION 3.16)
project(edgekit_model C CXX)

set(TFLM_DIR "" CACHE PATH "checkout of tflite-micro, after make microlite")
if(NOT EXISTS "${TFLM_DIR}/tensorflow/lite/micro/micro_interpreter.h")
  message(FATAL_ERROR "set TFLM_DIR to a checkout of tflite-micro, got '${TFLM_DIR}'")
endif()
file(GLOB TFLM_LIBRARIES "${TFLM_DIR}/gen/*/lib/libtensorflow-microlite.a")
list(LENGTH TFLM_LIBRARIES TFLM_FOUND)
if(NOT TFLM_LIBRARY AND NOT TFLM_FOUND EQUAL 1)
  message(FATAL_ERROR "found ${TFLM_FOUND} libtensorflow-microlite.a in ${TFLM_DIR}/gen; run make "
    "microlite there, or name one with -DTFLM_LIBRARY=FILE")
endif()
set(TFLM_LIBRARY "${TFLM_LIBRARIES}" CACHE FILEPATH "libtensorflow-microlite.a")
set(TFLM_DOWNLOADS "${TFLM_DIR}/tensorflow/lite/micro/tools/make/downloads")

add_library(model STATIC model.c)
target_include_directories(model PUBLIC "${CMAKE_CURRENT_SOURCE_DIR}")

add_executable(golden main.cc)
target_compile_features(golden PRIVATE cxx_std_17)
target_compile_definitions(golden PRIVATE TF_LITE_STATIC_MEMORY)
target_include_directories(golden PRIVATE
  "${TFLM_DIR}"
  "${TFLM_DOWNLOADS}/flatbuffers/include"
  "${TFLM_DOWNLOADS}/gemmlowp"
  "${TFLM_DOWNLOADS}/ruy"
  "${TFLM_DOWNLOADS}/kissfft")
target_link_libraries(golden PRIVATE model "${TFLM_LIBRARY}" m)
"""
