/* What the harness needs of its surroundings: files, a message, an exit, and a timer. */
#ifndef TINYQ_PORT_H
#define TINYQ_PORT_H

#include <stdint.h>

enum { PORT_READ, PORT_WRITE };

int port_open(const char *path, int mode);                     /* handle, or -1 */
int port_read(int handle, void *data, uint32_t bytes);         /* 0 when all bytes came */
int port_write(int handle, const void *data, uint32_t bytes);  /* 0 when all bytes went */
int port_close(int handle);
void port_print(const char *text);
void port_exit(int status);

#endif
