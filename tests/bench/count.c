/* A QEMU TCG plugin that counts how often each instruction runs.
 *
 * Writes "address count" lines, both hexadecimal, to the file of the argument out=. The few functions
 * of the plugin interface (version 1) that it needs are declared here, for no package installs them. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*translate_callback)(plugin_id, struct qemu_plugin_tb *);
typedef void (*exit_callback)(plugin_id, void *);

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, translate_callback callback);
void qemu_plugin_register_atexit_cb(plugin_id id, exit_callback callback, void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_insn_exec_inline(
    struct qemu_plugin_insn *insn, int operation, void *address, uint64_t amount);

#define ADD_U64 0
#define BUCKETS 65536u

struct counter {
    uint64_t address;
    uint64_t count;
    struct counter *next;
};

static struct counter *buckets[BUCKETS];
static char path[4096];

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

static void translate(plugin_id id, struct qemu_plugin_tb *tb) {
    (void)id;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        struct counter *counter = find(qemu_plugin_insn_vaddr(insn));
        qemu_plugin_register_vcpu_insn_exec_inline(insn, ADD_U64, &counter->count, 1);
    }
}

static void finish(plugin_id id, void *data) {
    (void)id;
    (void)data;
    FILE *file = fopen(path, "w");
    if (file == NULL) {
        return;
    }
    for (unsigned i = 0; i < BUCKETS; i++) {
        for (struct counter *c = buckets[i]; c != NULL; c = c->next) {
            fprintf(file, "%" PRIx64 " %" PRIx64 "\n", c->address, c->count);
        }
    }
    fclose(file);
}

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

__attribute__((visibility("default"))) int qemu_plugin_install(
    plugin_id id, const void *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "out=", 4) == 0) {
            snprintf(path, sizeof path, "%s", argv[i] + 4);
        }
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
    qemu_plugin_register_atexit_cb(id, finish, NULL);
    return path[0] == '\0';
}
