/* Which frames of a key have come, of one sequence: the replay window. Twin of vela/dataplane/window.py. */
#ifndef VELA_NATIVE_WINDOW_H
#define VELA_NATIVE_WINDOW_H

#include <stdbool.h>
#include <stdint.h>

#include "key_page.h"

/* Go on with the window of this key, or begin it. One thread at a time uses a window. */
void window_open(struct sequence *self, uint64_t serial);

/* Tell whether a frame with this counter may be accepted, if its tag is right. */
bool window_is_new(const struct sequence *self, uint32_t counter);

/* Remember a frame whose counter is new and whose tag is right, before it goes on. */
void window_mark(struct sequence *self, uint32_t counter);

#endif
