/*
 * control.c - the controlling connection: packets and descriptors in, answers and events out. Nothing
 * here blocks: what cannot be sent now waits, in order, and no request is read meanwhile.
 */
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "pause.h"

#define MAX_PACKET_FDS 253 /* SCM_MAX_FD */

int listener = FD_LISTENER, control;
uint32_t control_serial = 1, control_uid;
bool control_greeted;

static bool blocked; /* the socket is full */
static uint32_t armed = EPOLLIN;
static uint32_t npending; /* of tables.pending */
static uint32_t pending_for; /* id of the request that they came for */
static bool pending_overflow;

struct packet {
	uint32_t type, id, size;
	int fd;
	_Alignas(8) char body[64];
};

/*
 * Packets that wait for room. There can be no more: the answers to starts and reopens under way, and to the last
 * request, and an exit of each task. The list begins anew when it is empty, and only then is another request read.
 */
COLD static struct packet owed[2 * (MAX_TASKS + MAX_EXECS) + MAX_TASKS + 1];
static uint32_t owed_first, owed_end;

/* The control message of the packet at hand, aligned; the stack stays on one page. */
static union {
	struct cmsghdr header;
	char bytes[CMSG_SPACE(sizeof(int) * MAX_PACKET_FDS)];
} data;

/* Closes what nobody took of the descriptors of a request. */
static void drop_pending(void)
{
	for (uint32_t i = 0; i < npending; i++)
		if (tables.pending[i] != 0)
			(void)sys(SYS_close, tables.pending[i]);
	npending = 0;
	pending_overflow = false;
}

static int peer_uid(int fd, uint32_t *uid)
{
	struct ucred peer;
	socklen_t size = sizeof peer;
	long err = sys(SYS_getsockopt, fd, SOL_SOCKET, SO_PEERCRED, &peer, &size);
	*uid = peer.uid;
	return (int)err;
}

/* Who may control this pod. The number looks different from inside another user namespace. */
int control_identify(void)
{
	return control != 0 ? peer_uid(control, &control_uid) : 0;
}

/* After a re-execution the connection and its uid are known. */
int control_init(bool adopted)
{
	int err = set_nonblocking(listener);
	if (err == 0)
		err = watch(listener, EPOLLIN, EV_LISTENER, 0);
	if (err == 0 && !adopted) {
		control = FD_CONTROL;
		err = control_identify();
		if (err == 0)
			err = set_nonblocking(control);
	}
	if (err == 0 && control != 0)
		err = watch(control, EPOLLIN, EV_CONTROL, 0);
	return err;
}

static void control_close(void)
{
	unwatch_close(&control);
	drop_pending();
	attach_forget_all();
	owed_first = owed_end = 0;
	blocked = listing = control_greeted = false;
	control_serial++;
}

void control_accept(void)
{
	uint32_t uid;
	int fd = (int)sys(SYS_accept4, listener, 0, 0, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0) { /* it went away again, or there is no room: the next tick tries again */
		rewatch(listener, 0, EV_LISTENER, 0);
		timer_within(50 * MS);
		return;
	}
	if (peer_uid(fd, &uid) != 0 || uid != control_uid) {
		(void)sys(SYS_close, fd);
		return;
	}
	if (control != 0)
		control_close();
	if (watch(fd, EPOLLIN, EV_CONTROL, 0) != 0)
		(void)sys(SYS_close, fd);
	else
		control = fd;
	armed = EPOLLIN;
	control_resume();
}

static void arm(uint32_t events)
{
	if (events != armed)
		rewatch(control, events, EV_CONTROL, 0);
	armed = events;
}

/* Returns 0, -EAGAIN (try again when told so) or -EPIPE (nobody is there). */
int control_send(uint32_t type, uint32_t id, const void *body, uint32_t size, const int *fds, uint32_t nfds)
{
	struct msg_header h = {.magic = PROTOCOL_MAGIC, .version = PROTOCOL_VERSION, .type = (uint16_t)type, .id = id, .size = size};
	struct iovec parts[2] = {{.iov_base = &h, .iov_len = sizeof h}, {.iov_base = (void *)(uintptr_t)body, .iov_len = size}};
	struct msghdr m = {.msg_iov = parts, .msg_iovlen = 2};
	if (control == 0)
		return -EPIPE;
	if (blocked)
		return -EAGAIN;
	if (nfds > 0) {
		memset(&data, 0, CMSG_SPACE(sizeof(int) * nfds));
		m.msg_control = &data;
		m.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		data.header.cmsg_level = SOL_SOCKET;
		data.header.cmsg_type = SCM_RIGHTS;
		data.header.cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		memcpy(CMSG_DATA(&data.header), fds, sizeof(int) * nfds);
	}
	long n = sys(SYS_sendmsg, control, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (!sys_failed(n))
		return 0;
	if (n == -EPIPE || n == -ECONNRESET || n == -ENOTCONN)
		return -EPIPE; /* the loop will see the end too */
	blocked = true;
	if (n != -EAGAIN) /* no memory, or too many descriptors in flight: only time helps */
		timer_within(20 * MS);
	arm(n == -EAGAIN ? EPOLLOUT : 0);
	return -EAGAIN;
}

/* False: there is no room. */
static bool put(const struct packet *p)
{
	int err = control_send(p->type, p->id, p->body, p->size, &p->fd, p->fd != 0);
	if (err == 0 && p->type == MSG_EXITED)
		exit_told(((const struct msg_exited *)(const void *)p->body)->record.task);
	return err != -EAGAIN;
}

/* The descriptor must stay open until the packet is out. */
void reply(struct caller to, uint32_t type, const void *body, uint32_t size, int fd)
{
	struct packet p = {.type = type, .id = to.id, .size = size, .fd = fd};
	if (to.serial != control_serial)
		return; /* its connection has ended */
	memcpy(p.body, body, size);
	if (!put(&p))
		owed[owed_end++] = p;
}

_Static_assert(sizeof(struct msg_welcome) <= sizeof owed->body && sizeof(struct msg_exited) <= sizeof owed->body, "answers fit");

void reply_failed(struct caller to, enum fail_stage stage, uint32_t index, int error)
{
	struct msg_failed f = {.stage = stage, .index = index, .error = error};
	reply(to, MSG_FAILED, &f, sizeof f, 0);
}

/* Sends what is owed until the socket is full again. */
static void control_flush(void)
{
	blocked = false;
	while (owed_first < owed_end && put(&owed[owed_first]))
		owed_first++;
	if (blocked)
		return;
	owed_first = owed_end = 0;
	list_go_on();
	control_resume();
}

/* A request is read only when the answer to the last one is out. */
void control_resume(void)
{
	if (control != 0 && !blocked)
		arm(reexec_pending || listing ? 0 : EPOLLIN);
}

void control_tick(void)
{
	rewatch(listener, EPOLLIN, EV_LISTENER, 0);
	if (blocked)
		control_flush();
}

bool control_blocked(void)
{
	return blocked;
}

/* Takes the descriptors of a packet out of its control data. */
static int take_fds(struct msghdr *m)
{
	int err = 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		if (n > MSG_MAX_FDS)
			err = -E2BIG;
		for (size_t i = 0; i < n; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
			if (npending < MAX_PENDING) {
				tables.pending[npending++] = fd;
			} else {
				err = -E2BIG;
				(void)sys(SYS_close, fd);
			}
		}
	}
	return err;
}

/* Looks at the form of a packet of n bytes. Returns 0 or -errno. */
static int check(const struct msg_header *h, size_t n, int flags)
{
	if (n < sizeof *h || h->magic != PROTOCOL_MAGIC || (flags & MSG_TRUNC) != 0 || h->size != n - sizeof *h)
		return -EBADMSG;
	if ((flags & MSG_CTRUNC) != 0)
		return -EMFILE;
	if (h->type != MSG_HELLO && h->version != PROTOCOL_VERSION)
		return -EPROTONOSUPPORT;
	return 0;
}

static void control_read(void)
{
	struct msg_header h = {0};
	struct request r = {0};
	struct iovec parts[2] = {{.iov_base = &h, .iov_len = sizeof h}, {.iov_base = &r.body, .iov_len = sizeof r.body}};
	struct msghdr m = {.msg_iov = parts, .msg_iovlen = 2, .msg_control = &data, .msg_controllen = sizeof data};
	long n = sys(SYS_recvmsg, control, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (n == -EAGAIN || n == -EINTR)
		return;
	if (sys_failed(n)) {
		control_close();
		return;
	}
	if (h.id != pending_for)
		drop_pending(); /* the sender gave up half way */
	pending_for = h.id;
	int err = take_fds(&m);
	if (n == 0) {
		control_close();
		return;
	}
	if (err == 0)
		err = check(&h, (size_t)n, m.msg_flags);
	if (h.type == MSG_FDS && (size_t)n >= sizeof h) {
		if (err != 0)
			pending_overflow = true; /* its request will fail */
		return;
	}
	if (err == 0 && pending_overflow)
		err = -E2BIG;
	r.type = h.type;
	r.from = (struct caller){h.id, control_serial};
	r.fds = tables.pending;
	r.nfds = npending;
	request_serve(&r, err);
	drop_pending();
	control_resume();
}

void control_event(uint32_t events)
{
	if (blocked && (events & EPOLLOUT) != 0)
		control_flush();
	else if ((events & EPOLLIN) != 0 && !blocked)
		control_read();
	else if ((events & (EPOLLHUP | EPOLLERR)) != 0)
		control_close();
}
