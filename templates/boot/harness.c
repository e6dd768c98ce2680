/* Runs a network on every sample of a file and writes what it computed to another.
 *
 * samples.bin: words "TQS1", number of samples, bytes a sample; then the inputs of each sample.
 * outputs.bin: records of four words (tag, index, value, bytes) and as many bytes of payload:
 *   'C' calibration   value: ticks around an empty call; index: ticks between empty layer hooks
 *   'L' layer         value: ticks; payload: the layer's output (only with TINYQ_PROFILE)
 *   'O' output        payload: the output
 *   'S' end of sample value: ticks of invoke; index: bytes of stack used by invoke
 *   'E' end           value: number of samples
 * One build takes any number of samples. Inputs are written before every invoke, because layers may
 * reuse their memory.
 */
#include <stddef.h>
#include <stdint.h>

#include "harness_config.h"
#include "port.h"
#include "timer.h"

#define MAGIC 0x31535154u /* "TQS1" */
#define PAINT 0xA5C35A3Cu
#define UNKNOWN 0xFFFFFFFFu

/* No inlining and no clones: calibration and measurement have to run the same instructions. */
#if defined(__clang__)
#define NOIPA __attribute__((noinline))
#else
#define NOIPA __attribute__((noipa))
#endif

typedef int (*invoke_t)(TINYQ_HARNESS_NET(t) *);

/* Volatile, so that no compiler makes a copy of measured() for either of the two. */
int tinyq_empty(TINYQ_HARNESS_NET(t) * unused);
static const volatile invoke_t empty = tinyq_empty;
static const volatile invoke_t whole = TINYQ_HARNESS_NET(invoke);

static union {
    uint64_t align;
    uint8_t bytes[TINYQ_HARNESS_ARENA_SIZE + TINYQ_HARNESS_ARENA_ALIGN];
} arena;
static TINYQ_HARNESS_NET(t) network;
static int out_file;

static void fail(const char *reason)
{
    port_print("FAIL ");
    port_print(reason);
    port_print("\n");
    port_exit(1);
}

static void record(char tag, uint32_t index, uint32_t value, const void *payload, uint32_t bytes)
{
    const uint32_t head[4] = {(uint32_t)(unsigned char)tag, index, value, bytes};
    if (port_write(out_file, head, sizeof head) != 0 || port_write(out_file, payload, bytes) != 0) {
        fail("cannot write outputs.bin");
    }
}

#ifdef TINYQ_FIRMWARE
/* An empty network for calibration: one instruction, the return. */
__attribute__((naked, noinline)) int
tinyq_empty(__attribute__((unused)) TINYQ_HARNESS_NET(t) * unused)
{
    __asm volatile("bx lr");
}

extern uint32_t __stack_limit[];
static uint32_t paint_bytes = UNKNOWN; /* how deep to paint: everything the first time */

static inline uint32_t *stack_pointer(void)
{
    uint32_t *sp;
    __asm volatile("mov %0, sp" : "=r"(sp));
    return sp;
}
#else
int tinyq_empty(TINYQ_HARNESS_NET(t) * unused)
{
    (void)unused;
    return 0;
}
#endif

#if TINYQ_TIMER == TIMER_MARK
NOIPA uint32_t tinyq_mark(void)
{
    __asm volatile("" ::: "memory"); /* every call stays */
    return 0u;
}
#endif

/* Calls invoke and reports its ticks. Nothing but the call may be between the two timer reads, and
 * the code is the same for the calibration, so that the difference counts the callee alone. */
NOIPA static int timed(invoke_t invoke, TINYQ_HARNESS_NET(t) * context, uint32_t *ticks)
{
    timer_restart();
    const uint32_t start = timer_read();
    const int status = invoke(context);
    const uint32_t stop = timer_read();
    *ticks = stop - start;
    return status;
}

/* As timed(), and measures the stack below the call by painting it first. */
NOIPA static int measured(invoke_t invoke, TINYQ_HARNESS_NET(t) * context, uint32_t *ticks,
                          uint32_t *stack_bytes)
{
#ifdef TINYQ_FIRMWARE
    /* Leaves timed()'s own frame out: its size is what an empty call dirties. */
    uint32_t *const top = stack_pointer();
    uint32_t *low = __stack_limit + 1;
    const uint32_t room = (uint32_t)(top - low) * 4u;
    if (paint_bytes < room) {
        low = top - paint_bytes / 4u;
    }
    *__stack_limit = PAINT;
    for (volatile uint32_t *word = low; word != top; ++word) {
        *word = PAINT;
    }
    const int status = timed(invoke, context, ticks);
    const volatile uint32_t *word = low;
    while (word != top && *word == PAINT) {
        ++word;
    }
    *stack_bytes = (uint32_t)(top - word) * 4u;
    if (*__stack_limit != PAINT || word == __stack_limit + 1) {
        fail("stack overflow");
    }
    return status;
#else
    *stack_bytes = UNKNOWN;
    return timed(invoke, context, ticks);
#endif
}

#ifdef TINYQ_PROFILE
static uint32_t layer_start;
static uint32_t hook_ticks;
static int calibrating;

void tinyq_layer_begin(int layer)
{
    (void)layer;
    timer_restart();
    layer_start = timer_read();
}

void tinyq_layer_end(int layer, const void *output, unsigned output_bytes)
{
    const uint32_t ticks = timer_read() - layer_start;
    if (calibrating) {
        hook_ticks = ticks;
        return;
    }
    record('L', (uint32_t)layer, ticks, output, output_bytes);
}

static void calibrate_hooks(void)
{
    calibrating = 1;
#ifdef TINYQ_FIRMWARE
    __asm volatile("bl tinyq_layer_begin\n\tbl tinyq_layer_end" ::
                       : "r0", "r1", "r2", "r3", "ip", "lr", "cc", "memory");
#else
    tinyq_layer_begin(0);
    tinyq_layer_end(0, NULL, 0);
#endif
    calibrating = 0;
}
#endif

static void run_sample(int in_file)
{
    uint32_t ticks = 0;
    uint32_t stack_bytes = 0;
    for (int i = 0; i < TINYQ_HARNESS_INPUT_COUNT; ++i) {
        void *const input = TINYQ_HARNESS_NET(input)(&network, i);
        if (port_read(in_file, input, tinyq_harness_input_bytes[i]) != 0) {
            fail("samples.bin is too short");
        }
    }
    if (measured(whole, &network, &ticks, &stack_bytes) != 0) {
        fail("invoke returned an error");
    }
    for (int i = 0; i < TINYQ_HARNESS_OUTPUT_COUNT; ++i) {
        const void *const output = TINYQ_HARNESS_NET(output)(&network, i);
        record('O', (uint32_t)i, 0, output, tinyq_harness_output_bytes[i]);
    }
    record('S', stack_bytes, ticks, NULL, 0);
#ifdef TINYQ_FIRMWARE
    if (paint_bytes == UNKNOWN) {
        /* Later samples hardly differ: a bit more than the first one's stack is enough. */
        paint_bytes = (2u * stack_bytes + 1024u) & ~3u;
    }
#endif
}

int main(void)
{
    uint32_t head[3];
    uint32_t empty_ticks = 0;
    uint32_t empty_stack = 0;
    uint32_t between_hooks = 0;
    const int in_file = port_open("samples.bin", PORT_READ);
    if (in_file < 0 || port_read(in_file, head, sizeof head) != 0 || head[0] != MAGIC) {
        fail("cannot read samples.bin");
    }
    out_file = port_open("outputs.bin", PORT_WRITE);
    if (out_file < 0) {
        fail("cannot create outputs.bin");
    }
    const uintptr_t base = (uintptr_t)arena.bytes;
    const size_t skip = (size_t)((0u - base) & (uintptr_t)(TINYQ_HARNESS_ARENA_ALIGN - 1));
    if (TINYQ_HARNESS_NET(init)(&network, arena.bytes + skip, TINYQ_HARNESS_ARENA_SIZE) != 0) {
        fail("init returned an error");
    }
    (void)measured(empty, &network, &empty_ticks, &empty_stack);
#ifdef TINYQ_PROFILE
    calibrate_hooks();
    between_hooks = hook_ticks;
#endif
    record('C', between_hooks, empty_ticks, &empty_stack, sizeof empty_stack);
    for (uint32_t sample = 0; sample < head[1]; ++sample) {
        run_sample(in_file);
    }
    record('E', 0, head[1], NULL, 0);
    if (port_close(out_file) != 0) {
        fail("cannot finish outputs.bin");
    }
    port_print("PASS\n");
    return 0;
}
