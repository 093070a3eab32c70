/*
 * reexec.c - going on as another binary: the same process, children and descriptors. When nothing is half
 * done and the writer stands between two lines, the tables go into a memfd that the next image reads.
 * PROTOCOL.md describes its layout. Records only grow at their end, unknown ones are skipped: a newer
 * pause reads what an older one wrote.
 */
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "pause.h"
#include "state.h"

#define CHECK_MS 1000

bool reexec_pending;

static int binary, memfd;
static uint32_t request_id, request_serial;
static uint64_t since;
static long write_error; /* of the state; the first one */

/* ---- writing ---- */

static void put(uint32_t type, const void *body, uint32_t size, const void *tail, uint32_t tail_size)
{
	struct state_record r = {.type = type, .size = size + tail_size};
	struct iovec parts[3] = {{&r, sizeof r}, {(void *)(uintptr_t)body, size}, {(void *)(uintptr_t)tail, tail_size}};
	long n = sys(SYS_writev, memfd, parts, 3);
	if (n != (long)(sizeof r + r.size) && write_error == 0)
		write_error = sys_failed(n) ? n : -ENOSPC;
}

static void put_task(const struct task *t)
{
	struct state_task s = {
		.id = t->id,
		.is_exec = t->index >= MAX_TASKS,
		.phase = t->phase,
		.untold = t->untold,
		.pid = t->pid,
		.pidfd = t->pidfd,
		.exit_slot = t->exit_slot,
		.tty_pipe = t->tty_pipe,
		.record = t->record,
	};
	memcpy(s.name, t->name, sizeof s.name);
	memcpy(s.fd, t->fd, sizeof t->fd);
	if (s.is_exec) {
		put(STATE_TASK, &s, sizeof s, NULL, 0);
		return;
	}
	struct log *l = log_at(t->index);
	s.log = atomic_load(&l->fd);
	s.line_max = l->line_max;
	s.bytes = atomic_load(&l->bytes);
	s.dropped = atomic_load(&l->dropped);
	s.unreported = l->unreported;
	for (uint32_t i = 0; i < 2; i++) {
		struct stream *st = &l->stream[i];
		uint64_t lost = atomic_load(&st->lost) - st->lost_seen; /* the writer has not told these yet */
		s.stream[i] = (struct state_stream){.fd = atomic_load(&st->fd), .open_line = st->open_line, .lost_line = st->lost_line, .lost = lost};
	}
	put(STATE_TASK, &s, sizeof s, NULL, 0);
	for (uint32_t i = 0; i < 2; i++) {
		struct state_bytes b = {.task = t->id, .where = i};
		if (l->stream[i].held > 0)
			put(STATE_BYTES, &b, sizeof b, log_held(t->index, i), l->stream[i].held);
	}
	struct state_bytes rest = {.task = t->id, .where = STATE_REST};
	if (l->rest > 0)
		put(STATE_BYTES, &rest, sizeof rest, log_rest(t->index), l->rest);
}

static void put_name(const struct kept_name *k)
{
	struct msg_name m;
	int fds[256] = {0};
	uint32_t n = 0, type = STATE_KEPT;
	memcpy(m.name, k->name, sizeof m.name);
	for (uint32_t at = k->first; at != 0 || type == STATE_KEPT; type = STATE_KEPT_MORE, n = 0) {
		for (; at != 0 && n < 256; at = kept_at(at - 1)->next)
			fds[n++] = kept_at(at - 1)->fd;
		put(type, &m, sizeof m, fds, n * (uint32_t)sizeof *fds);
	}
}

static int write_state(void)
{
	struct state_head h = {.magic = STATE_MAGIC, .version = STATE_VERSION};
	struct state_pod p = {
		.control = control,
		.control_uid = control_uid,
		.greeted = control_greeted,
		.answer = request_serial == control_serial,
		.request = request_id,
		.booted = booted,
		.files_soft = files_soft_limit(),
	};
	memfd = (int)sys(SYS_memfd_create, "pause-state", MFD_CLOEXEC);
	if (memfd < 0)
		return memfd;
	write_error = 0;
	if (sys(SYS_write, memfd, &h, sizeof h) != sizeof h)
		return -ENOSPC;
	put(STATE_POD, &p, sizeof p, NULL, 0);
	for (uint32_t i = 0; i < tasks_high; i++)
		if (task_at(i)->phase != PHASE_FREE)
			put_task(task_at(i));
	for (uint32_t i = MAX_TASKS; i < MAX_TASKS + execs_high; i++)
		if (task_at(i)->phase != PHASE_FREE)
			put_task(task_at(i));
	for (uint32_t i = 0; i < names_high; i++)
		if (name_at(i)->name[0] != 0)
			put_name(name_at(i));
	put(STATE_END, NULL, 0, NULL, 0);
	return (int)write_error;
}

/* ---- changing over ---- */

static void inherit(int fd)
{
	if (fd != 0)
		(void)sys(SYS_fcntl, fd, F_SETFD, 0); /* it is open: EBADF cannot happen */
}

static void inherit_all(void)
{
	inherit(control);
	inherit(FD_LISTENER);
	inherit(FD_EXITS);
	inherit(memfd);
	for (uint32_t i = 0; i < MAX_TASKS + execs_high; i++) {
		struct task *t = i < tasks_high || i >= MAX_TASKS ? task_at(i) : NULL;
		if (t == NULL || t->phase == PHASE_FREE)
			continue;
		inherit(t->pidfd);
		inherit(t->tty_pipe);
		for (enum add_fd b = 0; b < ADD_FD_COUNT; b++)
			inherit(t->fd[b]);
		if (i >= MAX_TASKS)
			continue;
		inherit(atomic_load(&log_at(i)->fd));
		inherit(atomic_load(&log_at(i)->stream[0].fd));
		inherit(atomic_load(&log_at(i)->stream[1].fd));
	}
	for (uint32_t i = 0; i < names_high; i++)
		for (uint32_t at = name_at(i)->first; at != 0; at = kept_at(at - 1)->next)
			inherit(kept_at(at - 1)->fd);
}

static long execute(char *argument)
{
	char *argv[] = {(char[]){"pause"}, argument, NULL}, *envp[] = {NULL};
	return sys(SYS_execveat, binary, "", argv, envp, AT_EMPTY_PATH);
}

/* Asks the binary, in a process of its own, whether it is a pause that reads this state. */
static int check_binary(void)
{
	int pidfd = 0, status = 0;
	struct clone_args args = {.flags = CLONE_PIDFD | CLONE_VFORK, .exit_signal = SIGCHLD, .pidfd = (uint64_t)(uintptr_t)&pidfd};
	siginfo_t info = {0};
	long pid = sys(SYS_clone3, &args, sizeof args);
	if (pid == 0) {
		(void)execute((char[]){STATE_QUESTION});
		die(126);
	}
	if (sys_failed(pid))
		return (int)pid;
	struct pollfd p = {.fd = pidfd, .events = POLLIN};
	struct timespec bound = {.tv_sec = CHECK_MS / 1000};
	if (sys(SYS_ppoll, &p, 1, &bound, 0, 8) != 1)
		(void)sys(SYS_pidfd_send_signal, pidfd, SIGKILL, 0, 0);
	if (sys(SYS_waitid, P_PIDFD, pidfd, &info, WEXITED, 0) == 0 && info.si_code == CLD_EXITED)
		status = info.si_status;
	(void)sys(SYS_close, pidfd);
	return status == STATE_READABLE ? 0 : -ENOEXEC;
}

/* Everything goes on as before. */
static void give_up(int error)
{
	reexec_pending = false;
	unwatch_close(&binary);
	unwatch_close(&memfd);
	writer_park(false);
	if (request_serial == control_serial)
		reply_failed(request_id, error);
	control_resume();
}

static void change_over(void)
{
	char argument[12] = {0};
	uint32_t n = 0;
	int err = write_state();
	if (err != 0) {
		memfd = memfd < 0 ? 0 : memfd;
		give_up(-err);
		return;
	}
	for (uint32_t v = (uint32_t)memfd; v > 0; v /= 10)
		n++;
	for (uint32_t v = (uint32_t)memfd; v > 0; v /= 10)
		argument[--n] = (char)('0' + v % 10);
	inherit_all();
	long failed = execute(argument);
	(void)sys(SYS_close_range, 3, ~0u, 4 /* CLOSE_RANGE_CLOEXEC */); /* a child started later closes them anyway */
	give_up((int)-failed);
}

static bool quiet(void)
{
	for (uint32_t i = 0; i < tasks_high; i++)
		if (task_at(i)->phase == PHASE_CLOSING)
			return false;
	return starts_in_flight == 0 && tasks_dying == 0 && tasks_reopening == 0 && !control_blocked();
}

int reexec_begin(struct request *r)
{
	if (r->nfds != 1)
		return -EBADMSG;
	binary = r->fds[0];
	int err = check_binary();
	if (err != 0) {
		binary = 0;
		return err;
	}
	r->fds[0] = 0;
	request_id = r->id;
	request_serial = control_serial;
	since = now();
	reexec_pending = true;
	return 0;
}

/* After every event while it is pending. */
void reexec_go_on(void)
{
	bool late = now() - since >= QUIET_BOUND;
	if (late)
		give_up(EBUSY);
	else if (!quiet())
		timer_within(20 * MS);
	else if (writer_park(true), !writer_parked())
		timer_within(20 * MS);
	else
		change_over();
}

/* ---- reading, in the next image ---- */

static void get_log(struct task *t, const struct state_task *s)
{
	struct log *l = log_at(t->index);
	atomic_store(&l->fd, s->log);
	atomic_store(&l->bytes, s->bytes);
	atomic_store(&l->dropped, s->dropped);
	l->unreported = s->unreported;
	for (uint32_t i = 0; i < 2; i++) {
		l->stream[i].open_line = s->stream[i].open_line;
		l->stream[i].lost_line = s->stream[i].lost_line;
		atomic_store(&l->stream[i].lost, s->stream[i].lost);
	}
	writer_prepare(t->index, s->stream[0].fd, s->stream[1].fd, s->line_max);
}

static int get_task(const struct state_task *s)
{
	struct task *t = s->is_exec ? exec_new(s->id) : task_new();
	if (t == NULL || s->phase == PHASE_FREE || s->phase > PHASE_EXITED)
		return -EINVAL;
	t->id = s->id;
	t->phase = (uint8_t)s->phase;
	t->untold = s->untold;
	t->pid = s->pid;
	t->pidfd = s->pidfd;
	t->exit_slot = s->exit_slot;
	t->tty_pipe = s->tty_pipe;
	t->record = s->record;
	memcpy(t->name, s->name, sizeof t->name);
	memcpy(t->fd, s->fd, sizeof t->fd);
	if (!s->is_exec)
		get_log(t, s);
	if (t->exit_slot >= exit_slots && !s->is_exec)
		return -EINVAL;
	int err = t->phase == PHASE_RUNNING ? watch(t->pidfd, EPOLLIN, EV_PIDFD, t->index) : 0;
	if (err == 0 && t->tty_pipe != 0)
		err = terminal_adopt(t);
	return err;
}

static int get_bytes(const struct state_bytes *b, const char *bytes, uint32_t size)
{
	struct task *t = task_find(b->task);
	if (t == NULL || t->index >= MAX_TASKS || b->where > STATE_REST || size > (b->where == STATE_REST ? LOG_RECORD : MAX_LINE))
		return -EINVAL;
	struct log *l = log_at(t->index);
	if (b->where == STATE_REST) {
		memcpy(log_rest(t->index), bytes, size);
		l->rest = size;
	} else {
		memcpy(log_held(t->index, b->where), bytes, size);
		l->stream[b->where].held = size;
	}
	return 0;
}

static int get_pod(const struct state_pod *p)
{
	control = p->control;
	control_uid = p->control_uid;
	control_greeted = p->greeted;
	booted = p->booted;
	request_id = p->request;
	request_serial = p->answer ? control_serial : control_serial - 1;
	files_born_with(p->files_soft);
	return 0;
}

/* One record. Bodies of older writers are shorter: what is missing is zero. */
static int get(const struct state_record *r, const char *body)
{
	union {
		struct state_pod pod;
		struct state_task task;
		struct state_bytes bytes;
		struct msg_name name;
	} u = {0};
	int fds[256] = {0};
	uint32_t head = r->type == STATE_BYTES ? sizeof u.bytes : sizeof u.name;
	if (r->type == STATE_KEPT || r->type == STATE_KEPT_MORE || r->type == STATE_BYTES) {
		if (r->size < head)
			return -EINVAL;
		memcpy(&u, body, head);
		body += head;
	} else {
		memcpy(&u, body, r->size < sizeof u ? r->size : sizeof u);
	}
	switch (r->type) {
	case STATE_POD:
		return get_pod(&u.pod);
	case STATE_TASK:
		return get_task(&u.task);
	case STATE_BYTES:
		return get_bytes(&u.bytes, body, r->size - head);
	case STATE_KEPT:
	case STATE_KEPT_MORE: {
		uint32_t size = r->size - head;
		if (size > sizeof fds || memchr(u.name.name, 0, NAME_SIZE) == NULL)
			return -EINVAL;
		memcpy(fds, body, size);
		return keep(u.name.name, fds, size / (uint32_t)sizeof *fds, r->type == STATE_KEPT_MORE);
	}
	default:
		return 0;
	}
}

static int read_state(const char *at, size_t size)
{
	struct state_head h;
	struct state_record r;
	size_t done = sizeof h;
	if (size < sizeof h)
		return -EINVAL;
	memcpy(&h, at, sizeof h);
	if (h.magic != STATE_MAGIC || h.version > STATE_VERSION)
		return -EINVAL;
	do {
		if (size - done < sizeof r)
			return -EINVAL;
		memcpy(&r, at + done, sizeof r);
		done += sizeof r;
		if (size - done < r.size)
			return -EINVAL;
		int err = get(&r, at + done);
		if (err != 0)
			return err;
		done += r.size;
	} while (r.type != STATE_END);
	return 0;
}

/* The predecessor's tables are ours; its request is answered. */
int reexec_restore(int fd)
{
	struct stat st;
	long err = sys(SYS_fstat, fd, &st);
	if (sys_failed(err))
		return (int)err;
	long at = sys(SYS_mmap, 0, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (sys_failed(at))
		return (int)at;
	err = read_state((const char *)at, (size_t)st.st_size);
	(void)sys(SYS_munmap, at, st.st_size);
	(void)sys(SYS_close, fd);
	if (err == 0)
		err = control_init(true);
	if (err == 0 && tasks_high > 0)
		err = writer_start();
	if (err != 0)
		return (int)err;
	for (uint32_t i = 0; i < tasks_high; i++)
		if (task_at(i)->phase != PHASE_FREE)
			writer_ask(i, LOG_OPEN);
	if (request_serial == control_serial && control != 0)
		reply(MSG_OK, request_id, NULL, 0, 0);
	return 0;
}
