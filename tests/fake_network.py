"""A hand-written network with the API of generated code, whose instructions are known."""

from __future__ import annotations

import json
from pathlib import Path

from tinyq.build import Network, load_network

HEADER = """
#ifndef FAKE_H
#define FAKE_H
#include <stddef.h>
#include <stdint.h>
#define FAKE_ARENA_SIZE 64
#define FAKE_ARENA_ALIGN 16
#define FAKE_INPUT_COUNT 2
#define FAKE_OUTPUT_COUNT 1
#define FAKE_INPUT_0_SIZE 8
#define FAKE_INPUT_1_SIZE 4
#define FAKE_OUTPUT_0_SIZE 8
typedef struct { uint8_t *arena; } fake_t;
int fake_init(fake_t *net, void *arena, size_t size);
void *fake_input(fake_t *net, int index);
int fake_invoke(fake_t *net);
const void *fake_output(const fake_t *net, int index);
#ifdef TINYQ_PROFILE
void tinyq_layer_begin(int layer);
void tinyq_layer_end(int layer, const void *output, unsigned output_bytes);
#endif
#endif
"""

SOURCE = """
#include "fake.h"
#include "fake_data.h"
#ifdef TINYQ_PROFILE
#define BEGIN(layer) tinyq_layer_begin(layer)
#define END(layer, output, bytes) tinyq_layer_end(layer, output, bytes)
#else
#define BEGIN(layer) (void)0
#define END(layer, output, bytes) (void)0
#endif
int fake_init(fake_t *net, void *arena, size_t size)
{
    if (size < FAKE_ARENA_SIZE || ((uintptr_t)arena & (FAKE_ARENA_ALIGN - 1)) != 0u) {
        return -1;
    }
    net->arena = (uint8_t *)arena;
    return 0;
}
void *fake_input(fake_t *net, int index)
{
    return net->arena + (index == 0 ? 0 : 8);
}
const void *fake_output(const fake_t *net, int index)
{
    (void)index;
    return net->arena;
}
int fake_invoke(fake_t *net)
{
    int8_t *values = (int8_t *)net->arena;
    const int8_t *other = (const int8_t *)(net->arena + 8);
    BEGIN(0);
    for (int i = 0; i < 8; ++i) {
        values[i] = (int8_t)(uint8_t)((uint8_t)values[i] + (uint8_t)other[i & 3]);
    }
    END(0, values, 8);
    BEGIN(1);
    for (int i = 0; i < 8; ++i) {
        values[i] = (int8_t)(uint8_t)((uint8_t)values[i] ^ fake_mask[i]);
    }
    BODY
    END(1, values, 8);
    return 0;
}
"""

DATA_HEADER = """
#ifndef FAKE_DATA_H
#define FAKE_DATA_H
#include <stdint.h>
extern const uint8_t fake_mask[8];
#endif
"""

DATA = """
#include "fake_data.h"
const uint8_t fake_mask[8] = {1, 2, 4, 8, 16, 32, 64, 128};
"""

MANIFEST = {
    "name": "fake",
    "target": "cortex-m4",
    "cflags": ["-O2"],
    "arena_bytes": 64,
    "inputs": [
        {"name": "a", "shape": [1, 8], "dtype": "int8", "bytes": 8},
        {"name": "b", "shape": [1, 4], "dtype": "int8", "bytes": 4},
    ],
    "outputs": [{"name": "y", "shape": [1, 8], "dtype": "int8", "bytes": 8}],
    "layers": [
        {"name": "add", "shape": [1, 8], "dtype": "int8", "bytes": 8},
        {"name": "xor", "shape": [1, 8], "dtype": "int8", "bytes": 8},
    ],
}

MASK = (1, 2, 4, 8, 16, 32, 64, 128)


def write_fake(
    folder: Path, body: str = "", *, source: str = SOURCE, name: str = "fake"
) -> Network:
    """Write the network into ``folder``; ``body`` is C that runs in its second layer."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "fake.h": HEADER,
        "fake.c": source.replace("BODY", body),
        "fake_data.h": DATA_HEADER,
        "fake_data.c": DATA,
        "manifest.json": json.dumps(MANIFEST),
    }
    for file, text in files.items():
        renamed = text.replace("fake", name).replace("FAKE", name.upper())
        (folder / file.replace("fake", name)).write_text(renamed)
    return load_network(folder)


def asm_loop(rounds: int, nops: int) -> str:
    """C of a loop of ``1 + rounds * (nops + 2)`` instructions on every core.

    One MOVS loads the counter, so ``rounds`` is below 256; each round is the NOPs, SUBS and BNE.
    """
    if not 0 < rounds < 256:
        raise ValueError("rounds must fit MOVS")
    return (
        f'__asm volatile(".syntax unified\\n\\tmovs r3, #{rounds}\\n'
        f'1:\\n\\t.rept {nops}\\n\\tnop\\n\\t.endr\\n\\tsubs r3, #1\\n\\tbne 1b"'
        ' ::: "r3", "cc");'
    )
