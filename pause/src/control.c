/*
 * control.c - the controlling connection: packets and descriptors in, answers and events out. Nothing
 * here blocks: what cannot be sent now is remembered where it came from, and no request is read meanwhile.
 */
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "pause.h"

#define MAX_PACKET_FDS 253 /* SCM_MAX_FD */

int listener = FD_LISTENER, control;
uint32_t control_serial = 1, control_uid;
bool control_greeted;

static bool blocked; /* the socket is full, nothing can be sent */
static bool listener_rests;
static bool choked;  /* blocked for want of something else: only time helps */
static uint32_t armed = EPOLLIN;
static uint32_t npending; /* of tables.pending */
static uint32_t pending_for; /* id of the request that they came for */
static bool pending_overflow;

/* The answer to the last request, if it could not be sent at once. */
static struct {
	bool waits;
	uint32_t type, id, size;
	int fd;
	char body[64];
} answer;

/* The bytes of a control message, aligned. */
union control_data {
	struct cmsghdr header;
	char bytes[CMSG_SPACE(sizeof(int) * MAX_PACKET_FDS)];
};

static union control_data data; /* of the packet at hand; the stack stays on one page */

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

static int set_nonblocking(int fd)
{
	long flags = sys(SYS_fcntl, fd, 3 /* F_GETFL */);
	if (sys_failed(flags))
		return (int)flags;
	return (int)sys(SYS_fcntl, fd, 4 /* F_SETFL */, flags | SOCK_NONBLOCK);
}

/* Who may control this pod. The number looks different from inside another user namespace. */
int control_identify(void)
{
	return control != 0 ? peer_uid(control, &control_uid) : 0;
}

/* After a re-execution everything but the flags of the descriptors is known. */
int control_init(bool adopted)
{
	int err = set_nonblocking(listener);
	if (err == 0)
		err = watch(listener, EPOLLIN, EV_LISTENER, 0);
	if (err != 0)
		return err;
	if (!adopted) {
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
	blocked = answer.waits = listing = control_greeted = false;
	control_serial++;
	starts_answer(); /* nobody waits for these any more */
	tasks_answer();
}

void control_accept(void)
{
	uint32_t uid;
	int fd = (int)sys(SYS_accept4, listener, 0, 0, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0) { /* it went away again, or there is no room: try later */
		rewatch(listener, 0, EV_LISTENER, 0);
		listener_rests = true;
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

/* control_send returns 0, -EAGAIN (try again when told so) or -EPIPE (nobody is there). */
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
	choked = n != -EAGAIN; /* no memory, or too many descriptors in flight */
	if (choked)
		timer_within(20 * MS);
	arm(choked ? 0 : EPOLLOUT);
	return -EAGAIN;
}

void reply(uint32_t type, uint32_t id, const void *body, uint32_t size, int fd)
{
	if (control_send(type, id, body, size, &fd, fd != 0) != -EAGAIN)
		return;
	answer.waits = true;
	answer.type = type;
	answer.id = id;
	answer.size = size;
	answer.fd = fd;
	if (size > 0)
		memcpy(answer.body, body, size);
}

_Static_assert(sizeof(struct msg_welcome) <= sizeof answer.body, "answers fit");

void reply_failed(uint32_t id, int error)
{
	struct msg_failed f = {.stage = FAIL_REQUEST, .error = error};
	reply_failure(id, &f);
}

void reply_failure(uint32_t id, const struct msg_failed *failure)
{
	reply(MSG_FAILED, id, failure, sizeof *failure, 0);
}

/* Sends everything that is owed until the socket is full again. */
static void control_flush(void)
{
	blocked = false;
	if (answer.waits) {
		answer.waits = false;
		reply(answer.type, answer.id, answer.body, answer.size, answer.fd);
	}
	if (!blocked)
		starts_answer();
	if (!blocked && control_greeted)
		tasks_answer();
	if (!blocked)
		(void)list_go_on();
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
	if (listener_rests)
		rewatch(listener, EPOLLIN, EV_LISTENER, 0);
	listener_rests = false;
	if (blocked && choked)
		control_flush();
}

bool control_blocked(void)
{
	return blocked;
}

/* Takes the descriptors of a packet out of its control data. Returns how many fit. */
static int take_fds(struct msghdr *m)
{
	int err = 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || c->cmsg_len < CMSG_LEN(0))
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

/* Checks a packet and fills r. Returns 0 or -errno. */
static int parse(const struct msg_header *h, size_t size, int flags, struct request *r)
{
	if (size < sizeof *h || h->magic != PROTOCOL_MAGIC || (flags & MSG_TRUNC) != 0)
		return -EBADMSG;
	r->type = h->type;
	r->id = h->id;
	r->size = h->size;
	if (h->size != size - sizeof *h)
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
	if (h.id != pending_for)
		drop_pending(); /* the sender gave up half way */
	pending_for = h.id;
	int err = sys_failed(n) ? 0 : take_fds(&m);
	if (n <= 0) {
		control_close();
		return;
	}
	if (err == 0)
		err = parse(&h, (size_t)n, m.msg_flags, &r);
	if (h.type == MSG_FDS && (size_t)n >= sizeof h) {
		if (err != 0)
			pending_overflow = true; /* its request will fail */
		return;
	}
	if (err == 0 && pending_overflow)
		err = -E2BIG;
	r.id = h.id;
	r.fds = tables.pending;
	r.nfds = npending;
	if (err == 0)
		request_serve(&r);
	else
		reply_failed(r.id, -err);
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
