/*
 * task.c - containers and execs: registration, reaping, and the way from the exit of a first process to
 * its record: kill what is left in the leaf, let the log take what is left in the pipes, record, tell.
 */
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "pause.h"

uint32_t tasks_high, execs_high;
struct exit_record *exits;
uint32_t exit_slots;

int exits_init(void)
{
	struct stat st;
	long err = sys(SYS_fstat, FD_EXITS, &st);
	if (sys_failed(err))
		return (int)err;
	uint64_t slots = (uint64_t)st.st_size / sizeof(struct exit_record);
	exit_slots = slots > 65536 ? 65536 : (uint32_t)slots;
	if (exit_slots == 0)
		return 0;
	long at = sys(SYS_mmap, 0, exit_slots * sizeof(struct exit_record), PROT_READ | PROT_WRITE, MAP_SHARED, FD_EXITS, 0);
	if (sys_failed(at))
		return (int)at;
	exits = (struct exit_record *)at;
	return 0;
}

/* The next task in use from index *i on, which is moved behind it; NULL: no more. */
struct task *next_task(uint32_t *i)
{
	for (;;) {
		if (*i >= tasks_high && *i < MAX_TASKS)
			*i = MAX_TASKS;
		if (*i >= MAX_TASKS + execs_high)
			return NULL;
		struct task *t = task_at((*i)++);
		if (t->phase != PHASE_FREE)
			return t;
	}
}

struct task *task_find(uint64_t id)
{
	struct task *t;
	for (uint32_t i = 0; (t = next_task(&i)) != NULL;)
		if (t->id == id && t->phase != PHASE_CLOSING)
			break;
	return t;
}

static struct task *container_find(uint64_t id)
{
	struct task *t = task_find(id);
	return t != NULL && !is_exec(t) ? t : NULL;
}

/* A container, or an exec, in the first row that is free. */
struct task *task_new(uint64_t id, bool exec)
{
	uint32_t from = exec ? MAX_TASKS : 0, *high = exec ? &execs_high : &tasks_high;
	for (uint32_t i = 0; i < MAX_TASKS; i++) {
		struct task *t = task_at(from + i);
		if (t->phase != PHASE_FREE)
			continue;
		if (i >= *high)
			*high = i + 1;
		t->index = (uint16_t)(from + i);
		t->id = id;
		t->phase = PHASE_ADDED;
		return t;
	}
	return NULL;
}

void task_free(struct task *t)
{
	unwatch_close(&t->pidfd);
	memset(t, 0, sizeof *t);
}

/* Takes descriptor n of the request for bit b of enum add_fd, 0 when it is not there. */
static int take(const struct msg_add *m, struct request *r, uint32_t *n, enum add_fd b)
{
	if ((m->fds & 1u << b) == 0)
		return 0;
	int fd = r->fds[*n];
	r->fds[(*n)++] = 0;
	return fd;
}

static int add_check(const struct msg_add *m, const struct request *r)
{
	const struct task *t;
	bool terminal = (m->fds & 1u << ADD_TTY) != 0, pipes = (m->fds & (1u << ADD_STDOUT | 1u << ADD_STDERR)) != 0;
	if (m->task == 0 || m->flags != 0 || (m->fds & ~((1u << ADD_FD_COUNT) - 1)) != 0 || m->line_max > MAX_LINE || (terminal && pipes))
		return -EINVAL;
	if ((uint32_t)__builtin_popcount(m->fds) != r->nfds)
		return -EBADMSG;
	if (m->exit_slot >= exit_slots)
		return -ERANGE;
	if (task_find(m->task) != NULL)
		return -EEXIST;
	for (uint32_t i = 0; (t = next_task(&i)) != NULL;)
		if (!is_exec(t) && t->phase != PHASE_CLOSING && t->exit_slot == m->exit_slot)
			return -EBUSY;
	return 0;
}

int task_add(struct request *r)
{
	const struct msg_add *m = &r->body.add;
	int err = add_check(m, r);
	if (err == 0)
		err = writer_start();
	if (err != 0)
		return err;
	struct task *t = task_new(m->task, false);
	if (t == NULL)
		return -ENOSPC;
	uint32_t n = 0, i = t->index;
	int tty_output = 0;
	if ((m->fds & 1u << ADD_TTY) != 0) { /* the only step that can fail: before anything is taken */
		err = terminal_open(t, r->fds[(m->fds & 1u << ADD_LOG) != 0], &tty_output);
		if (err != 0) {
			task_free(t);
			return err;
		}
	}
	t->exit_slot = m->exit_slot;
	memcpy(t->name, m->name, sizeof t->name);
	atomic_store(&log_at(i)->fd, take(m, r, &n, ADD_LOG));
	int out = take(m, r, &n, ADD_STDOUT);
	int err_end = take(m, r, &n, ADD_STDERR);
	for (enum add_fd b = ADD_TTY; b < ADD_FD_COUNT; b++)
		t->fd[b] = take(m, r, &n, b);
	writer_prepare(i, out != 0 ? out : tty_output, err_end, m->line_max != 0 ? m->line_max : DEFAULT_LINE);
	writer_ask(i, LOG_OPEN);
	return 0;
}

int task_remove(uint64_t id)
{
	struct task *t = container_find(id);
	if (t == NULL)
		return -ENOENT;
	if (t->phase != PHASE_ADDED && t->phase != PHASE_EXITED)
		return -EBUSY;
	if (t->reopening)
		return -EBUSY;
	unwatch_close(&t->tty_pipe);
	for (enum add_fd b = 0; b < ADD_FD_COUNT; b++)
		unwatch_close(&t->fd[b]);
	if (exits[t->exit_slot].task != 0)
		memset(&exits[t->exit_slot], 0, sizeof exits[t->exit_slot]);
	t->untold = false;
	t->phase = PHASE_CLOSING;
	writer_ask(t->index, LOG_CLOSE);
	return 0;
}

int task_resize(const struct msg_resize *m)
{
	struct {
		uint16_t rows, cols, x, y;
	} size = {.rows = m->rows, .cols = m->cols};
	struct task *t = container_find(m->task);
	if (t == NULL)
		return -ENOENT;
	if (t->fd[ADD_TTY] == 0)
		return -ENOTTY;
	return (int)sys(SYS_ioctl, t->fd[ADD_TTY], 0x5414 /* TIOCSWINSZ */, &size);
}

/* A terminal stays: its input ends by a character. */
int task_end_stdin(uint64_t id)
{
	struct task *t = container_find(id);
	if (t == NULL)
		return -ENOENT;
	unwatch_close(&t->fd[ADD_STDIN]);
	return 0;
}

int task_reopen(struct request *r)
{
	struct task *t = container_find(r->body.task.task);
	if (t == NULL)
		return -ENOENT;
	if (r->nfds != 1)
		return -EBADMSG;
	if (t->reopening)
		return -EBUSY;
	t->reopening = true;
	t->reopener = r->from;
	t->reopen_since = now();
	atomic_store(&log_at(t->index)->newfd, r->fds[0]);
	r->fds[0] = 0;
	writer_ask(t->index, LOG_SWITCH);
	timer_within(REOPEN_BOUND);
	return ANSWERED;
}

/* True once after the writer has told it. */
static bool told(const struct task *t, uint32_t what)
{
	return (atomic_fetch_and(&log_at(t->index)->told, ~what) & what) != 0;
}

/* Answers a REOPEN when the writer has switched, or has not looked in time: then the old file stays. */
static void reopen_look(struct task *t)
{
	int refused = 0;
	if (!t->reopening)
		return;
	if (told(t, LOG_SWITCH)) {
		reply(t->reopener, MSG_OK, "", 0, 0);
	} else if (now() - t->reopen_since < REOPEN_BOUND || (refused = atomic_exchange(&log_at(t->index)->newfd, 0)) == 0) {
		timer_within(50 * MS);
		return;
	} else {
		(void)sys(SYS_close, refused);
		reply_failed(t->reopener, FAIL_REQUEST, 0, ETIMEDOUT);
	}
	t->reopening = false;
}

bool task_reap(struct task *t, int32_t *status)
{
	siginfo_t info = {0};
	if (sys(SYS_waitid, P_PIDFD, t->pidfd, &info, WEXITED | WNOHANG, 0) != 0 || info.si_pid == 0)
		return false;
	if (info.si_code == CLD_EXITED)
		*status = (info.si_status & 0xff) << 8;
	else
		*status = info.si_status | (info.si_code == CLD_DUMPED ? 0x80 : 0);
	return true;
}

/* Tells an exit if somebody listens; exit_told hears when it is out. */
static void exit_tell(struct task *t)
{
	struct caller listener_now = {0, control_serial};
	if (t->untold && control_greeted)
		reply(listener_now, MSG_EXITED, &t->record, sizeof t->record, 0);
}

void exits_tell(void)
{
	struct task *t;
	for (uint32_t i = 0; (t = next_task(&i)) != NULL;)
		exit_tell(t);
}

/* An exec is forgotten then, a container needs its descriptors no more. */
void exit_told(uint64_t id)
{
	struct task *t = task_find(id);
	t->untold = false;
	if (is_exec(t)) {
		task_free(t);
		return;
	}
	unwatch_close(&t->pidfd);
	for (enum add_fd b = ADD_STDIN; b < ADD_FD_COUNT; b++)
		unwatch_close(&t->fd[b]);
}

static void exit_set(struct task *t)
{
	t->record.written = EXIT_WRITTEN;
	t->phase = PHASE_EXITED;
	t->untold = true;
	exit_tell(t);
}

/* A running process has been reaped. */
void task_exited(struct task *t, int32_t status)
{
	unwatch(t->pidfd);
	t->record = (struct exit_record){.task = t->id, .time_ns = wall_time(), .status = status};
	if (is_exec(t)) {
		exit_set(t);
		return;
	}
	t->since = now();
	t->phase = PHASE_KILLING;
	t->kill_step = KILL_BEGIN;
	task_advance(t);
}

/* The record is complete in memory before anybody is told. */
static void task_record(struct task *t)
{
	struct exit_record *r = &exits[t->exit_slot];
	t->record.dropped = atomic_load(&log_at(t->index)->dropped);
	t->record.oom_kills = leaf_oom_kills(t);
	memcpy(r, &t->record, sizeof *r);
	__atomic_store_n(&r->written, EXIT_WRITTEN, __ATOMIC_RELEASE);
	exit_set(t);
}

/* Takes a dying task as far as it gets now; the leaf's descriptor, the writer or a tick brings it back here. */
void task_advance(struct task *t)
{
	uint64_t age = now() - t->since;
	if (t->phase == PHASE_KILLING) {
		bool gone = leaf_gone(t);
		if (!gone && age < EMPTY_BOUND) {
			timer_within(age < 50 * MS ? 2 * MS : 20 * MS);
			return;
		}
		t->record.flags |= gone ? 0 : EXIT_POPULATED;
		if (t->fd[ADD_EVENTS] != 0)
			unwatch(t->fd[ADD_EVENTS]);
		terminal_drain(t);
		t->phase = PHASE_DRAINING;
		t->since = now();
		age = 0;
		if (writer_open_streams(t->index))
			writer_ask(t->index, LOG_DRAIN);
		else
			task_record(t);
	}
	if (t->phase == PHASE_DRAINING) {
		bool done = told(t, LOG_DRAIN);
		if (!done && !writer_stuck && age < DRAIN_BOUND) {
			timer_within(DRAIN_BOUND - age);
			return;
		}
		t->record.flags |= done ? 0 : EXIT_LOG_BEHIND;
		task_record(t);
	}
}

static void task_closed(struct task *t)
{
	struct log *l = log_at(t->index);
	if (t->phase != PHASE_CLOSING || (atomic_load(&l->told) & LOG_CLOSE) == 0)
		return;
	memset((void *)l, 0, sizeof *l); /* the writer knows it no more */
	task_free(t);
}

void tasks_told(void)
{
	for (uint32_t word = 0; word < MAX_TASKS / 32; word++) {
		for (uint32_t bits = writer_told(word); bits != 0; bits &= bits - 1) {
			struct task *t = task_at(word * 32 + (uint32_t)__builtin_ctz(bits));
			reopen_look(t);
			task_advance(t);
			task_closed(t);
		}
	}
}

void tasks_tick(void)
{
	struct task *t;
	for (uint32_t i = 0; (t = next_task(&i)) != NULL;) {
		reopen_look(t);
		task_advance(t);
	}
}

/* 0: not a container of the listing. */
enum task_state task_public(const struct task *t)
{
	switch ((enum task_phase)t->phase) {
	case PHASE_ADDED:
		return TASK_ADDED;
	case PHASE_STARTING:
		return TASK_STARTING;
	case PHASE_RUNNING:
	case PHASE_KILLING:
	case PHASE_DRAINING:
		return TASK_RUNNING;
	case PHASE_EXITED:
		return TASK_EXITED;
	default:
		return 0;
	}
}

uint32_t task_open_fds(const struct task *t)
{
	const struct log *l = log_at(t->index);
	uint32_t bits = 0;
	for (enum add_fd b = ADD_TTY; b < ADD_FD_COUNT; b++)
		if (t->fd[b] != 0)
			bits |= 1u << b;
	if (l->fd != 0)
		bits |= 1u << ADD_LOG;
	for (uint32_t s = 0; s < 2 && t->fd[ADD_TTY] == 0; s++)
		if (atomic_load(&l->stream[s].fd) != 0)
			bits |= 1u << (ADD_STDOUT + s);
	return bits;
}
