/* Harness port for a hosted system: stdio. */
#include <stdio.h>
#include <stdlib.h>

#include "port.h"

static FILE *files[2];

int port_open(const char *path, int mode)
{
    files[mode] = fopen(path, mode == PORT_READ ? "rb" : "wb");
    return files[mode] != NULL ? mode : -1;
}

int port_read(int handle, void *data, uint32_t bytes)
{
    return bytes == 0 || fread(data, 1, bytes, files[handle]) == bytes ? 0 : -1;
}

int port_write(int handle, const void *data, uint32_t bytes)
{
    return bytes == 0 || fwrite(data, 1, bytes, files[handle]) == bytes ? 0 : -1;
}

int port_close(int handle)
{
    return fclose(files[handle]);
}

void port_print(const char *text)
{
    (void)fputs(text, stdout);
}

void port_exit(int status)
{
    exit(status);
}
