/* The board's UART, 8 data bits, no parity, one stop bit, by polling. */
#ifndef TINYQ_UART_H
#define TINYQ_UART_H

#include <stdint.h>

void uart_start(void);        /* clock, pins, baud rate; call it first */
int uart_get(void);           /* the next byte that arrived, or -1 */
void uart_put(uint8_t byte);  /* waits until there is room */
void uart_flush(void);        /* waits until the last byte has left */

#endif
