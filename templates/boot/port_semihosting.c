/* Harness port over Arm semihosting (Semihosting for AArch32 and AArch64, 2.0). */
#include "port.h"

enum {
    SYS_OPEN = 0x01,
    SYS_CLOSE = 0x02,
    SYS_WRITE0 = 0x04,
    SYS_WRITE = 0x05,
    SYS_READ = 0x06,
    SYS_EXIT_EXTENDED = 0x20
};
#define ADP_STOPPED_APPLICATION_EXIT 0x20026u
#define ADP_STOPPED_RUN_TIME_ERROR 0x20023u

static int call(int operation, const void *argument)
{
    register int r0 __asm("r0") = operation;
    register const void *r1 __asm("r1") = argument;
    __asm volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

int port_open(const char *path, int mode)
{
    uint32_t length = 0;
    while (path[length] != '\0') {
        ++length;
    }
    /* Modes are indices into fopen's: 1 is "rb", 5 is "wb". */
    const uint32_t block[3] = {(uint32_t)path, mode == PORT_READ ? 1u : 5u, length};
    return call(SYS_OPEN, block);
}

/* SYS_READ and SYS_WRITE return the number of bytes that were NOT transferred. */
int port_read(int handle, void *data, uint32_t bytes)
{
    const uint32_t block[3] = {(uint32_t)handle, (uint32_t)data, bytes};
    return bytes == 0 || call(SYS_READ, block) == 0 ? 0 : -1;
}

int port_write(int handle, const void *data, uint32_t bytes)
{
    const uint32_t block[3] = {(uint32_t)handle, (uint32_t)data, bytes};
    return bytes == 0 || call(SYS_WRITE, block) == 0 ? 0 : -1;
}

int port_close(int handle)
{
    const uint32_t block[1] = {(uint32_t)handle};
    return call(SYS_CLOSE, block);
}

void port_print(const char *text)
{
    (void)call(SYS_WRITE0, text);
}

void port_exit(int status)
{
    const uint32_t reason = status == 0 ? ADP_STOPPED_APPLICATION_EXIT : ADP_STOPPED_RUN_TIME_ERROR;
    const uint32_t block[2] = {reason, (uint32_t)status};
    (void)call(SYS_EXIT_EXTENDED, block);
    for (;;) {
    }
}
