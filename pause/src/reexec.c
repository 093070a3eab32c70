/*
 * reexec.c - going on as another binary: the same process, children and descriptors. When nothing is half
 * done and the writer stands between two lines, the tables go into a memfd that the next image reads.
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
static struct caller asker;
static uint64_t since;
static int write_error; /* of the state; the first one */

/* ---- writing ---- */

static void put(uint32_t type, const void *body, uint32_t size, const void *tail, uint32_t tail_size)
{
	struct state_record r = {.type = type, .size = size + tail_size};
	struct iovec parts[3] = {{&r, sizeof r}, {(void *)(uintptr_t)body, size}, {(void *)(uintptr_t)tail, tail_size}};
	long n = sys(SYS_writev, memfd, parts, 3);
	if (n != (long)(sizeof r + r.size) && write_error == 0)
		write_error = sys_failed(n) ? (int)n : -ENOSPC;
}

/* The next image shall have it. */
static int inherit(int fd)
{
	if (fd != 0)
		(void)sys(SYS_fcntl, fd, F_SETFD, 0); /* it is open: EBADF cannot happen */
	return fd;
}

static void put_bytes(const struct task *t, uint32_t where, const char *bytes, uint32_t size)
{
	struct state_bytes b = {.task = t->id, .where = where};
	if (size > 0)
		put(STATE_BYTES, &b, sizeof b, bytes, size);
}

static void put_task(const struct task *t)
{
	struct log *l = log_at(t->index);
	struct state_task s = {
		.id = t->id,
		.is_exec = is_exec(t),
		.phase = t->phase,
		.untold = t->untold,
		.pid = t->pid,
		.pidfd = inherit(t->pidfd),
		.exit_slot = t->exit_slot,
		.tty_pipe = inherit(t->tty_pipe),
		.record = t->record,
	};
	memcpy(s.name, t->name, sizeof s.name);
	for (enum add_fd b = 0; b < ADD_FD_COUNT; b++)
		s.fd[b] = inherit(t->fd[b]);
	if (is_exec(t)) {
		put(STATE_TASK, &s, sizeof s, NULL, 0);
		return;
	}
	s.log = inherit(atomic_load(&l->fd));
	s.line_max = l->line_max;
	s.bytes = atomic_load(&l->bytes);
	s.dropped = atomic_load(&l->dropped);
	s.unreported = l->unreported;
	for (uint32_t i = 0; i < 2; i++) {
		struct stream *st = &l->stream[i];
		uint64_t lost = atomic_load(&st->lost) - st->lost_seen; /* the writer has not told these yet */
		s.stream[i] = (struct state_stream){.fd = inherit(atomic_load(&st->fd)), .open_line = st->open_line, .lost_line = st->lost_line, .lost = lost};
	}
	put(STATE_TASK, &s, sizeof s, NULL, 0);
	put_bytes(t, 0, log_held(t->index, 0), l->stream[0].held);
	put_bytes(t, 1, log_held(t->index, 1), l->stream[1].held);
	put_bytes(t, STATE_REST, log_rest(t->index), l->rest);
}

static void put_name(uint32_t name)
{
	struct msg_name m;
	int fds[STATE_FDS];
	uint32_t at = 0, n, type = STATE_KEPT;
	memcpy(m.name, name_at(name)->name, sizeof m.name);
	do {
		n = kept_next(name, &at, fds, STATE_FDS);
		for (uint32_t i = 0; i < n; i++)
			(void)inherit(fds[i]);
		put(type, &m, sizeof m, fds, n * (uint32_t)sizeof *fds);
		type = STATE_KEPT_MORE;
	} while (n == STATE_FDS);
}

/* Writes the tables, and lets the next image have every descriptor that is in them. */
static int write_state(void)
{
	struct state_head h = {.magic = STATE_MAGIC, .version = STATE_VERSION};
	struct state_pod p = {
		.control = inherit(control),
		.control_uid = control_uid,
		.greeted = control_greeted,
		.answer = asker.serial == control_serial,
		.request = asker.id,
		.booted = booted,
		.files_soft = files_limit.rlim_cur,
		.term_since = term_since,
	};
	struct task *t;
	long fd = sys(SYS_memfd_create, "pause-state", MFD_CLOEXEC);
	if (sys_failed(fd))
		return (int)fd;
	memfd = inherit((int)fd);
	(void)inherit(FD_LISTENER);
	(void)inherit(FD_EXITS);
	write_error = sys(SYS_write, memfd, &h, sizeof h) == sizeof h ? 0 : -ENOSPC;
	put(STATE_POD, &p, sizeof p, NULL, 0);
	for (uint32_t i = 0; (t = next_task(&i)) != NULL;)
		put_task(t);
	for (uint32_t i = 0; i < names_high; i++)
		if (name_at(i)->name[0] != 0)
			put_name(i);
	put(STATE_END, NULL, 0, NULL, 0);
	return write_error;
}

/* ---- changing over ---- */

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
	writer_go_on();
	reply_failed(asker, FAIL_REQUEST, 0, error);
	control_resume();
}

static void change_over(void)
{
	char number[8] = {0};
	int err = write_state();
	if (err == 0) {
		put_digits(number, sizeof number - 1, (uint64_t)memfd);
		err = (int)execute(number);
	}
	(void)sys(SYS_close_range, 3, ~0u, CLOSE_RANGE_CLOEXEC); /* a child started later closes them anyway */
	give_up(-err);
}

/* Nothing is half done. */
static bool quiet(void)
{
	struct task *t;
	for (uint32_t i = 0; (t = next_task(&i)) != NULL;)
		if (t->reopening || (t->phase != PHASE_ADDED && t->phase != PHASE_RUNNING && t->phase != PHASE_EXITED))
			return false;
	return !control_blocked();
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
	asker = r->from;
	since = now();
	reexec_pending = true;
	return ANSWERED; /* by the next image */
}

/* After every event while it is pending. */
void reexec_go_on(void)
{
	if (now() - since >= QUIET_BOUND) {
		give_up(EBUSY);
	} else if (!quiet()) {
		writer_go_on(); /* what is half done may need it */
		timer_within(20 * MS);
	} else if (!writer_park()) {
		timer_within(20 * MS);
	} else {
		change_over();
	}
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
	struct task *t = task_new(s->id, s->is_exec != 0);
	if (t == NULL || s->phase == PHASE_FREE || s->phase > PHASE_EXITED)
		return -EINVAL;
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
	asker = (struct caller){p->request, p->answer ? control_serial : control_serial - 1};
	files_limit.rlim_cur = p->files_soft;
	term_since = p->term_since;
	return 0;
}

static int get_kept(const struct msg_name *m, const char *bytes, uint32_t size, bool more)
{
	int fds[STATE_FDS];
	if (size > sizeof fds || memchr(m->name, 0, NAME_SIZE) == NULL)
		return -EINVAL;
	memcpy(fds, bytes, size);
	return keep(m->name, fds, size / (uint32_t)sizeof *fds, more);
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
	bool kept = r->type == STATE_KEPT || r->type == STATE_KEPT_MORE;
	uint32_t head = kept ? sizeof u.name : sizeof u.bytes; /* of what has a tail */
	memcpy(&u, body, r->size < sizeof u ? r->size : sizeof u);
	if ((kept || r->type == STATE_BYTES) && r->size < head)
		return -EINVAL;
	switch (r->type) {
	case STATE_POD:
		return get_pod(&u.pod);
	case STATE_TASK:
		return get_task(&u.task);
	case STATE_BYTES:
		return get_bytes(&u.bytes, body + head, r->size - head);
	case STATE_KEPT:
	case STATE_KEPT_MORE:
		return get_kept(&u.name, body + head, r->size - head, r->type == STATE_KEPT_MORE);
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
	struct task *t;
	for (uint32_t i = 0; (t = next_task(&i)) != NULL;)
		if (!is_exec(t))
			writer_ask(t->index, LOG_OPEN);
	reply(asker, MSG_OK, "", 0, 0);
	return 0;
}
