/* A QEMU TCG plugin that counts how often each instruction runs, in phases.
 *
 * Arguments: out=FILE, and any number of mark=ADDRESS (hexadecimal). A new phase begins just before
 * the instruction at a mark runs. The file has lines "phase address count", the phase decimal, the
 * others hexadecimal, without those that did not run. The few functions of the plugin interface
 * (version 1) that it needs are declared here, for no package installs them. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*translate_callback)(plugin_id, struct qemu_plugin_tb *);
typedef void (*exit_callback)(plugin_id, void *);
typedef void (*execute_callback)(unsigned, void *);

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, translate_callback callback);
void qemu_plugin_register_atexit_cb(plugin_id id, exit_callback callback, void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_insn_exec_inline(
    struct qemu_plugin_insn *insn, int operation, void *address, uint64_t amount);
void qemu_plugin_register_vcpu_insn_exec_cb(
    struct qemu_plugin_insn *insn, execute_callback callback, int flags, void *data);

#define ADD_U64 0
#define NO_REGISTERS 0
#define BUCKETS 65536u
#define MARKS 16

struct counter {
    uint64_t address;
    uint64_t count;
    uint64_t reported;
    struct counter *next;
};

static struct counter *buckets[BUCKETS];
static uint64_t marks[MARKS];
static int mark_count;
static unsigned long phase;
static FILE *output;

static struct counter *find(uint64_t address) {
    struct counter **at = &buckets[(address >> 1) % BUCKETS];
    for (struct counter *c = *at; c != NULL; c = c->next) {
        if (c->address == address) {
            return c;
        }
    }
    struct counter *made = calloc(1, sizeof *made);
    if (made == NULL) {
        abort();
    }
    made->address = address;
    made->next = *at;
    *at = made;
    return made;
}

/* Ends a phase: what ran since the last one ended. */
static void report(void) {
    for (unsigned i = 0; i < BUCKETS; i++) {
        for (struct counter *c = buckets[i]; c != NULL; c = c->next) {
            if (c->count != c->reported) {
                fprintf(output, "%lu %" PRIx64 " %" PRIx64 "\n", phase, c->address,
                        c->count - c->reported);
                c->reported = c->count;
            }
        }
    }
}

static void next_phase(unsigned cpu, void *data) {
    (void)cpu;
    (void)data;
    report();
    phase++;
}

static int is_mark(uint64_t address) {
    for (int i = 0; i < mark_count; i++) {
        if (marks[i] == address) {
            return 1;
        }
    }
    return 0;
}

static void translate(plugin_id id, struct qemu_plugin_tb *tb) {
    (void)id;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        const uint64_t address = qemu_plugin_insn_vaddr(insn);
        struct counter *counter = find(address);
        if (is_mark(address)) {
            qemu_plugin_register_vcpu_insn_exec_cb(insn, next_phase, NO_REGISTERS, NULL);
        }
        qemu_plugin_register_vcpu_insn_exec_inline(insn, ADD_U64, &counter->count, 1);
    }
}

static void finish(plugin_id id, void *data) {
    (void)id;
    (void)data;
    report();
    fclose(output);
}

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

__attribute__((visibility("default"))) int qemu_plugin_install(
    plugin_id id, const void *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "out=", 4) == 0) {
            output = fopen(argv[i] + 4, "w");
        } else if (strncmp(argv[i], "mark=", 5) == 0 && mark_count < MARKS) {
            marks[mark_count++] = strtoull(argv[i] + 5, NULL, 16);
        } else {
            return 1;
        }
    }
    if (output == NULL) {
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
    qemu_plugin_register_atexit_cb(id, finish, NULL);
    return 0;
}
