/* As much of Arduino as the example needs; the text goes through semihosting. */
#ifndef ARDUINO_H
#define ARDUINO_H

#include <stdint.h>

extern "C" void port_print(const char *text);

struct SerialPort {
    void begin(long) {}
    void print(const char *text) { port_print(text); }
    explicit operator bool() const { return true; }
};
extern SerialPort Serial;

void setup(void);
void loop(void);

#endif
