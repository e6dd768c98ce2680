/* What the boot ROM of an RP2350 looks for in the first 4 KiB of flash: an image definition that says
 * that this is a program for the Arm cores, started by the vector table at its beginning (RP2350 data
 * sheet, bootrom: minimum Arm IMAGE_DEF). */
#include <stdint.h>

__attribute__((section(".boot_block"), used)) static const uint32_t image_definition[] = {
    0xFFFFDED3u, /* start of a block */
    0x10210142u, /* item of one word, IMAGE_TYPE: executable, secure, Arm, RP2350 */
    0x000001FFu, /* last item; the items take one word */
    0x00000000u, /* the next block is this one */
    0xAB123579u, /* end of a block */
};
