/* The native twin of the data path as a Python type. Here are only its
 * arguments, its errors, and the interpreter's lock, which both calls give up for as long as they
 * last. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/random.h>

#include "cipher.h"
#include "counters.h"
#include "egress.h"
#include "ingress.h"
#include "io.h"
#include "poller.h"

/* vela/dataplane/handover.py */
#define WAKE SIGURG

typedef struct {
	PyObject_HEAD
	struct egress egress;
	struct ingress ingress;
	struct poller poller;
	Py_buffer counters;
	Py_buffer key_page; /* empty: the circuit is not encrypted */
} DataPlane;

/* Fill in what sendmsg takes on this socket for (address, port). Returns -1 with an exception set. */
static int pack_address(int fd, const char *address, int port, struct sockaddr_storage *packed,
			socklen_t *length)
{
	struct sockaddr_storage own;
	socklen_t own_length = sizeof(own);
	void *target;

	if (getsockname(fd, (struct sockaddr *)&own, &own_length) < 0) {
		PyErr_SetFromErrno(PyExc_OSError);
		return -1;
	}
	memset(packed, 0, sizeof(*packed));
	packed->ss_family = own.ss_family;
	if (own.ss_family == AF_INET6) {
		struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)packed;
		in6->sin6_port = htons((uint16_t)port);
		target = &in6->sin6_addr;
		*length = sizeof(*in6);
	} else {
		struct sockaddr_in *in = (struct sockaddr_in *)packed;
		in->sin_port = htons((uint16_t)port);
		target = &in->sin_addr;
		*length = sizeof(*in);
	}
	if (port < 1 || port > 65535 || inet_pton(own.ss_family, address, target) != 1) {
		PyErr_Format(PyExc_ValueError, "%s port %d is no destination of this socket", address,
			     port);
		return -1;
	}
	return 0;
}

/* Write a control message with the header that sendmsg wants. */
static int pack_source_address(int level, int type, const char *value, Py_ssize_t length,
		       struct source_address *packed)
{
	if (length < 1 || length > SOURCE_ADDRESS_MAX) {
		PyErr_Format(PyExc_ValueError, "%zd bytes do not say where to send from", length);
		return -1;
	}
	struct cmsghdr header = {
		.cmsg_len = CMSG_LEN((size_t)length), .cmsg_level = level, .cmsg_type = type};
	memset(packed, 0, sizeof(*packed));
	packed->length = CMSG_SPACE((size_t)length);
	memcpy(packed->space, &header, sizeof(header));
	memcpy(packed->space + CMSG_LEN(0), value, (size_t)length);
	return 0;
}

/* Make the circuit an encrypted one. shares: it has several queues. sequences: that the remote may use.
 * Returns -1 with an exception set. */
static int take_key_page(DataPlane *self, PyObject *memory, uint8_t circuit_id, unsigned queue, bool shares,
			 unsigned sequences)
{
	struct egress *egress = &self->egress;
	struct ingress *ingress = &self->ingress;
	const char *obstacle = aead_unavailable();

	if (obstacle) {
		PyErr_SetString(PyExc_ValueError, obstacle);
		return -1;
	}
	if (PyObject_GetBuffer(memory, &self->key_page, PyBUF_WRITABLE) < 0)
		return -1;
	struct key_page *page = self->key_page.buf;
	unsigned room = page_room((size_t)self->key_page.len);
	if (self->key_page.len < KEY_PAGE_ALIGNMENT || (uintptr_t)page % KEY_PAGE_ALIGNMENT ||
	    queue >= room || sequences > room || !key_page_take_over(page, queue)) {
		PyErr_SetString(PyExc_ValueError, "this memory is no key page, or too small a one");
		PyBuffer_Release(&self->key_page);
		return -1;
	}
	ingress->opener = (struct opener){.io = ingress->io,
					  .page = page,
					  .acknowledges = queue == 0,
					  .shares = shares,
					  .sequences = sequences};
	ingress->sealer = (struct sealer){.io = ingress->io,
					  .page = page,
					  .circuit_id = circuit_id,
					  .sequence = queue,
					  .room = room};
	egress->sealer = ingress->sealer;
	egress->sealer.acknowledges = queue == 0;
	return 0;
}

static int DataPlane_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"circuit_id",  "tap_fd",      "receive_fd",     "send_fd",
				"divert_fd",   "destination", "source_address",         "local_mac",
				"remote_mac",  "elision",     "frame_limit",    "datagram_limit",
				"virtio_header", "partial_checksums", "nowait", "segment", "gro",
				"coalesce_tcp", "coalesce_udp", "clamp_datagram_limit", "clamp_mss",
				"fragmentation", "packet_too_big", "dscp", "carry_ecn", "outer_ipv4", "counters", "key_page", "sequences", "bundle_limit", "queue",
				"queues", NULL};
	DataPlane *self = (DataPlane *)object;
	struct egress *egress = &self->egress;
	struct ingress *ingress = &self->ingress;
	int circuit_id, tap_fd, receive_fd, send_fd, divert_fd, elision, virtio_header, partial_checksums;
	int nowait, segment, gro, coalesce_tcp, coalesce_udp, clamp_mss, fragmentation;
	int packet_too_big, dscp, carry_ecn, outer_ipv4, sequences, queue, queues;
	PyObject *destination, *source_address, *key_page;
	Py_buffer local_mac = {0}, remote_mac = {0}, counters = {0};
	Py_ssize_t frame_limit, datagram_limit, clamp_datagram_limit, bundle_limit;
	int status = -1;

	if (self->counters.obj) {
		PyErr_SetString(PyExc_RuntimeError, "a data plane is set up once");
		return -1;
	}
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$iiiiiOOy*y*innpppppppniipippw*Oinii", names, &circuit_id,
					 &tap_fd, &receive_fd, &send_fd, &divert_fd, &destination, &source_address,
					 &local_mac, &remote_mac, &elision, &frame_limit,
					 &datagram_limit, &virtio_header, &partial_checksums, &nowait, &segment,
					 &gro, &coalesce_tcp, &coalesce_udp, &clamp_datagram_limit,
					 &clamp_mss, &fragmentation, &packet_too_big, &dscp, &carry_ecn,
					 &outer_ipv4, &counters, &key_page, &sequences, &bundle_limit, &queue,
					 &queues))
		return -1;
	if (circuit_id < 1 || circuit_id > 255 || elision < ELISION_NEVER || elision > ELISION_ALWAYS ||
	    local_mac.len != 6 || remote_mac.len != 6 || frame_limit < ETHERNET_HEADER ||
	    frame_limit > MAX_UDP_PAYLOAD - HEADROOM - (key_page == Py_None ? 0 : SEAL) || datagram_limit < HEADROOM ||
	    datagram_limit > MAX_UDP_PAYLOAD || clamp_datagram_limit < 0 || clamp_mss < 0 ||
	    clamp_mss > UINT16_MAX || fragmentation < FRAGMENT_BY_IP || fragmentation > FRAGMENT_NEVER ||
	    queues < 1 || queues & (queues - 1) || queue < 0 ||
	    queue >= queues || sequences < 1 || sequences > SEQUENCES || bundle_limit < 0 || bundle_limit > BUNDLE_MAX || dscp < DSCP_INHERIT || dscp > UINT8_MAX >> DSCP_SHIFT ||
	    counters.len < WORKER_SLOTS * (Py_ssize_t)sizeof(uint64_t) ||
	    (uintptr_t)counters.buf % sizeof(uint64_t)) {
		PyErr_SetString(PyExc_ValueError, "an argument is out of its range");
		goto exit;
	}
	if (destination != Py_None) {
		const char *address;
		int port;
		if (!PyArg_ParseTuple(destination, "si", &address, &port) ||
		    pack_address(send_fd, address, port, &egress->destination,
				 &egress->destination_length) < 0)
			goto exit;
		ingress->destination = egress->destination;
		ingress->destination_length = egress->destination_length;
	}
	if (source_address != Py_None) {
		int level, type;
		const char *value;
		Py_ssize_t length;
		if (!PyArg_ParseTuple(source_address, "iiy#", &level, &type, &value, &length) ||
		    pack_source_address(level, type, value, length, &egress->source_address) < 0)
			goto exit;
		ingress->source_address = egress->source_address;
	}
	encapsulation_init(&egress->encapsulation, (uint8_t)circuit_id, local_mac.buf, remote_mac.buf,
			   (enum elision)elision, (size_t)frame_limit);
	ingress->encapsulation = egress->encapsulation;
	egress->io = ingress->io = &kernel_io;
	egress->tap_fd = ingress->tap_fd = tap_fd;
	egress->send_fd = ingress->send_fd = send_fd;
	ingress->receive_fd = receive_fd;
	ingress->divert_fd = divert_fd;
	egress->virtio_header = ingress->virtio_header =
		virtio_header ? sizeof(struct virtio_header) : 0;
	egress->partial_checksums = ingress->partial_checksums = partial_checksums;
	egress->nowait = nowait;
	egress->segment = segment;
	egress->mss_clamp = ingress->mss_clamp = (struct mss_clamp){
		.datagram_limit = (size_t)clamp_datagram_limit, .mss = (uint16_t)clamp_mss};
	ingress->gro = gro;
	/* Without a virtio header nothing could say so. */
	ingress->coalesce_tcp = virtio_header && coalesce_tcp;
	ingress->coalesce_udp = virtio_header && coalesce_udp;
	egress->marking = (struct marking){
		.dscp = dscp, .carry_ecn = carry_ecn, .outer_ipv4 = outer_ipv4};
	egress->route_limit = (size_t)datagram_limit;
	egress->counters = ingress->counters = counters.buf;
	if (key_page != Py_None &&
	    take_key_page(self, key_page, (uint8_t)circuit_id, (unsigned)queue, queues > 1,
			  (unsigned)sequences) < 0)
		goto exit;
	egress->fragmentation = (enum fragmentation)fragmentation;
	egress->packet_too_big = packet_too_big;
	egress->bundle_limit = (size_t)bundle_limit;
	/* So that frames of this worker are not taken for those of the one before it. */
	if (getrandom(&egress->frame_number, sizeof(egress->frame_number), 0) !=
	    sizeof(egress->frame_number)) {
		PyErr_SetFromErrno(PyExc_OSError);
		goto exit;
	}
	/* So that they are no other queue's either. */
	egress->frame_number -= egress->frame_number % (uint32_t)queues;
	egress->frame_number += (uint32_t)queue;
	egress->skipped_numbers = (uint32_t)queues - 1;
	if (!egress_init(egress) || !ingress_init(ingress)) {
		PyErr_NoMemory();
		goto exit;
	}
	self->counters = counters;
	counters = (Py_buffer){0};
	status = 0;
exit:
	if (status < 0)
		PyBuffer_Release(&self->key_page);
	PyBuffer_Release(&local_mac);
	PyBuffer_Release(&remote_mac);
	PyBuffer_Release(&counters);
	return status;
}

static void DataPlane_dealloc(PyObject *object)
{
	DataPlane *self = (DataPlane *)object;
	PyTypeObject *type = Py_TYPE(object);

	egress_free(&self->egress);
	ingress_free(&self->ingress);
	PyBuffer_Release(&self->counters);
	PyBuffer_Release(&self->key_page);
	type->tp_free(object);
	Py_DECREF(type);
}

static int is_set_up(const DataPlane *self)
{
	if (self->counters.obj)
		return 1;
	PyErr_SetString(PyExc_RuntimeError, "the data plane was not set up");
	return 0;
}

static PyObject *outcome(int error)
{
	if (error == 0)
		Py_RETURN_NONE;
	errno = error;
	return PyErr_SetFromErrno(PyExc_OSError);
}

static void wake(int Py_UNUSED(number))
{
}

/* Let WAKE go to this thread (SIG_UNBLOCK), or to those that have not stopped (SIG_BLOCK). */
static void mask_wake(int how)
{
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, WAKE);
	pthread_sigmask(how, &signals, NULL);
}

/* Repeat one direction's batches until the first byte of a buffer, which another process writes, is not 0: a
 * loop in Python would take the interpreter's lock, and its lines of cache, after each frame of a ping. */
static PyObject *forward_until(DataPlane *self, int (*batch)(DataPlane *), PyObject *args)
{
	struct sigaction ends_waits = {.sa_handler = wake}; /* without SA_RESTART */
	PyObject *stop, *states;
	Py_buffer asked;
	int error = 0;

	/* What states are for, the signal does. */
	if (!is_set_up(self) || !PyArg_ParseTuple(args, "OO", &stop, &states) ||
	    PyObject_GetBuffer(stop, &asked, PyBUF_SIMPLE) < 0)
		return NULL;
	if (asked.len < 1) {
		PyBuffer_Release(&asked);
		PyErr_SetString(PyExc_ValueError, "no byte says when to stop");
		return NULL;
	}
	const uint8_t *byte = asked.buf;
	Py_BEGIN_ALLOW_THREADS
	sigaction(WAKE, &ends_waits, NULL);
	mask_wake(SIG_UNBLOCK);
	while (error == 0 && !__atomic_load_n(byte, __ATOMIC_RELAXED))
		error = batch(self);
	mask_wake(SIG_BLOCK);
	Py_END_ALLOW_THREADS
	PyBuffer_Release(&asked);
	return outcome(error);
}

static int batch_of_egress(DataPlane *self)
{
	return egress_batch(&self->egress);
}

static int batch_of_ingress(DataPlane *self)
{
	return ingress_batch(&self->ingress);
}

static int turn_of_poller(DataPlane *self)
{
	return poller_turn(&self->poller);
}

PyDoc_STRVAR(egress_until_doc, "egress_until($self, stop, states, /)\n"
			       "--\n\n"
			       "Forward frames TAP to UDP. See vela.dataplane.DataPlane.");

static PyObject *DataPlane_egress_until(PyObject *object, PyObject *args)
{
	return forward_until((DataPlane *)object, batch_of_egress, args);
}

PyDoc_STRVAR(ingress_until_doc, "ingress_until($self, stop, states, /)\n"
				"--\n\n"
				"Forward frames UDP to TAP. See vela.dataplane.DataPlane.");

static PyObject *DataPlane_ingress_until(PyObject *object, PyObject *args)
{
	return forward_until((DataPlane *)object, batch_of_ingress, args);
}

PyDoc_STRVAR(poll_until_doc, "poll_until($self, stop, states, /)\n"
			     "--\n\n"
			     "Forward frames both ways. See vela.dataplane.DataPlane.");

static PyObject *DataPlane_poll_until(PyObject *object, PyObject *args)
{
	DataPlane *self = (DataPlane *)object;

	if (!is_set_up(self))
		return NULL;
	poller_init(&self->poller, &self->egress, &self->ingress);
	return forward_until(self, turn_of_poller, args);
}

PyDoc_STRVAR(egress_doc, "egress($self, /)\n"
			 "--\n\n"
			 "Forward frames TAP to UDP. See vela.dataplane.DataPlane.");

static PyObject *DataPlane_egress(PyObject *object, PyObject *Py_UNUSED(ignored))
{
	DataPlane *self = (DataPlane *)object;
	int error;

	if (!is_set_up(self))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	error = egress_batch(&self->egress);
	Py_END_ALLOW_THREADS
	return outcome(error);
}

PyDoc_STRVAR(ingress_doc, "ingress($self, /)\n"
			  "--\n\n"
			  "Forward frames UDP to TAP. See vela.dataplane.DataPlane.");

static PyObject *DataPlane_ingress(PyObject *object, PyObject *Py_UNUSED(ignored))
{
	DataPlane *self = (DataPlane *)object;
	int error;

	if (!is_set_up(self))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	error = ingress_batch(&self->ingress);
	Py_END_ALLOW_THREADS
	return outcome(error);
}

static PyMethodDef DataPlane_methods[] = {
	{"egress", DataPlane_egress, METH_NOARGS, egress_doc},
	{"ingress", DataPlane_ingress, METH_NOARGS, ingress_doc},
	{"egress_until", DataPlane_egress_until, METH_VARARGS, egress_until_doc},
	{"ingress_until", DataPlane_ingress_until, METH_VARARGS, ingress_until_doc},
	{"poll_until", DataPlane_poll_until, METH_VARARGS, poll_until_doc},
	{NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(DataPlane_doc,
	     "DataPlane(*, circuit_id, tap_fd, receive_fd, send_fd, divert_fd, destination, source_address,\n"
	     "          local_mac, remote_mac, elision, frame_limit, datagram_limit, virtio_header,\n"
	     "          partial_checksums, nowait, segment, gro, coalesce_tcp, coalesce_udp,\n"
	     "          clamp_datagram_limit, clamp_mss, fragmentation, packet_too_big, dscp, carry_ecn,\n"
	     "          outer_ipv4, counters, key_page, sequences, bundle_limit, queue, queues)\n"
	     "--\n\n"
	     "Forwards one circuit's frames. Arguments as in vela.dataplane.Attachment, sockets by their\n"
	     "descriptors, and features one by one: nowait is RWF_NOWAIT, segment UDP_SEGMENT, gro\n"
	     "UDP_GRO, coalesce_tcp TSO, coalesce_udp USO; limits of the MSS clamp are 0 where there are none;\n"
	     "dscp is -1 for that of the inner packet. Raises ValueError where one is out of its range.");

static PyType_Slot DataPlane_slots[] = {
	{Py_tp_doc, (void *)DataPlane_doc},
	{Py_tp_new, PyType_GenericNew},
	{Py_tp_init, DataPlane_init},
	{Py_tp_dealloc, DataPlane_dealloc},
	{Py_tp_methods, DataPlane_methods},
	{0, NULL},
};

static PyType_Spec DataPlane_spec = {
	.name = "vela.dataplane._native.DataPlane",
	.basicsize = sizeof(DataPlane),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = DataPlane_slots,
};

PyDoc_STRVAR(encryption_obstacle_doc, "encryption_obstacle($module, /)\n"
				      "--\n\n"
				      "Return why this build cannot encrypt, in words; None if it can.");

static PyObject *encryption_obstacle(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	const char *obstacle = aead_unavailable();

	if (obstacle == NULL)
		Py_RETURN_NONE;
	return PyUnicode_FromString(obstacle);
}

static PyMethodDef module_methods[] = {
	{"encryption_obstacle", encryption_obstacle, METH_NOARGS, encryption_obstacle_doc},
	{NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *module)
{
	PyObject *type = PyType_FromModuleAndSpec(module, &DataPlane_spec, NULL);
	int status = type ? PyModule_AddObjectRef(module, "DataPlane", type) : -1;

	Py_XDECREF(type);
	return status;
}

static PyModuleDef_Slot module_slots[] = {
	{Py_mod_exec, module_exec},
	{0, NULL},
};

static struct PyModuleDef module = {
	PyModuleDef_HEAD_INIT,
	.m_name = "vela.dataplane._native",
	.m_doc = "The native twin of vela.dataplane.reference.",
	.m_size = 0,
	.m_methods = module_methods,
	.m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
	return PyModuleDef_Init(&module);
}
