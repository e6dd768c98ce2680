/* Messages over the UART: no probe is needed. */
#include "port.h"
#include "uart.h"

void port_print(const char *text)
{
    static int started;
    if (!started) {
        uart_start();
        started = 1;
    }
    for (; *text != '\0'; ++text) {
        if (*text == '\n') {
            uart_put('\r');
        }
        uart_put((uint8_t)*text);
    }
}

void port_exit(int status)
{
    (void)status;
    uart_flush();
    for (;;) {
    }
}
