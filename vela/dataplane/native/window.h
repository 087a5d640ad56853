/* Which frames of a key have come: the replay window. Twin of vela/dataplane/window.py. */
#ifndef VELA_NATIVE_WINDOW_H
#define VELA_NATIVE_WINDOW_H

#include <stdbool.h>
#include <stdint.h>

#include "key_page.h"

/* Go on with the window of this key, or begin it. Only the worker's ingress thread uses it. */
void window_open(struct key_slot *slot, uint64_t serial);

/* Tell whether a frame with this counter may be accepted, if its tag is right. */
bool window_is_new(const struct key_slot *slot, uint32_t counter);

/* Remember a frame whose counter is new and whose tag is right, before it goes on. */
void window_mark(struct key_slot *slot, uint32_t counter);

#endif
