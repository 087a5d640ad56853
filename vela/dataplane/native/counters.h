/* Slots of a circuit's counters, 64 bits each. The numbers are those of vela.dataplane.counters.Slot. */
#ifndef VELA_NATIVE_COUNTERS_H
#define VELA_NATIVE_COUNTERS_H

enum slot {
	TX_FRAMES = 0,
	TX_BYTES = 1,
	TX_ELIDED = 2,
	TX_FRAGMENTED = 3,
	TX_ERRORS = 4,
	TX_NOT_IP = 5,
	EGRESS_PROGRESS = 6,
	TX_NO_KEY = 7,
	RX_FRAMES = 16,
	RX_BYTES = 17,
	RX_ELIDED = 18,
	RX_VERIFICATIONS = 19,
	RX_SHORT = 20,
	RX_RESERVED = 22,
	RX_OVERSIZED = 23,
	RX_MALFORMED = 24,
	RX_INTERFACE_DOWN = 25,
	RX_CONGESTED = 26,
	INGRESS_PROGRESS = 27,
	RX_CLEAR = 28,
	RX_NO_KEY = 29,
	RX_REPLAYED = 30,
	RX_BAD_TAG = 31,
	WORKER_SLOTS = 32,
};

#endif
