/*
 * start.c - birth of processes. A child is cloned by the supervisor (by way of a joiner when it is born in
 * another pid namespace), runs its Program and ends in execve, while the supervisor goes on: the child's
 * progress stands in shared memory, and the end of a close-on-exec pipe says when to look at it.
 */
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "pause.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif

#define NAMESPACES ((uint64_t)(CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWTIME))

/* What a child needs; filled before clone3. */
struct birth {
	struct clone_args args;
	const struct msg_start *start;
	struct report *report;
	int program;
	const int *own; /* descriptors of the Program */
	uint32_t nown;
	int pipe; /* write end */
	int join; /* pidfd, 0: none */
	long pid; /* or -errno */
	int pidfd;
};

uint32_t starts_in_flight, starts_high;

static struct report *reports; /* MAX_STARTS, shared with all children */
static struct rlimit files_before; /* RLIMIT_NOFILE that pause was born with, and its children shall have */
static bool files_raised;

#ifdef PAUSE_SANITIZE
#define JOINER_STACK (256u << 10)
#else
#define JOINER_STACK (16u << 10)
#endif
COLD static char joiner_stack[JOINER_STACK] __attribute__((aligned(64)));

int starts_init(void)
{
	long at = sys(SYS_mmap, 0, sizeof *reports * MAX_STARTS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (sys_failed(at))
		return (int)at;
	reports = (struct report *)at;
	long err = sys(SYS_prlimit64, 0, RLIMIT_NOFILE, 0, &files_before);
	if (sys_failed(err))
		return (int)err;
	struct rlimit all = {files_before.rlim_max, files_before.rlim_max};
	if (files_before.rlim_cur != files_before.rlim_max)
		files_raised = sys(SYS_prlimit64, 0, RLIMIT_NOFILE, &all, 0) == 0;
	return 0;
}

uint64_t files_soft_limit(void)
{
	return files_before.rlim_cur;
}

void files_born_with(uint64_t soft)
{
	files_before.rlim_cur = soft;
	files_raised = soft != files_before.rlim_max;
}

/* ---- in the child ---- */

static void sort(int *v, uint32_t n)
{
	for (uint32_t i = 1; i < n; i++) { /* they nearly always come sorted */
		int x = v[i];
		uint32_t k = i;
		for (; k > 0 && v[k - 1] > x; k--)
			v[k] = v[k - 1];
		v[k] = x;
	}
}

/* Closes everything from 3 on but n descriptors, which get sorted. */
static long close_others(int *keep, uint32_t n)
{
	int from = 3;
	sort(keep, n);
	for (uint32_t i = 0; i < n; i++) {
		long err = keep[i] > from ? sys(SYS_close_range, from, keep[i] - 1, 0) : 0;
		if (sys_failed(err))
			return err;
		if (keep[i] >= from)
			from = keep[i] + 1;
	}
	return sys(SYS_close_range, from, ~0u, 0);
}

static _Noreturn void child_fail(struct report *r, enum fail_stage stage, long err)
{
	r->error = (int32_t)-err;
	r->stage = stage;
	r->phase = REPORT_FAILED;
	die(127);
}

static long child_prologue(void)
{
	uint64_t none = 0;
	long err = sys(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
	if (!sys_failed(err) && files_raised)
		err = sys(SYS_prlimit64, 0, RLIMIT_NOFILE, &files_before, 0);
	if (!sys_failed(err))
		err = sys(SYS_rt_sigprocmask, SIG_SETMASK, &none, 0, 8);
	return err;
}

/* PID 1 of a shared pid namespace: the kernel reaps by itself what a process ignores. */
static _Noreturn void reaper(struct report *r)
{
	struct {
		void (*handler)(int);
		unsigned long flags;
		void *restorer;
		uint64_t mask;
	} ignore = {.handler = SIG_IGN};
	struct pollfd parent = {.fd = pause_pidfd, .events = POLLIN};
	long err = sys(SYS_rt_sigaction, SIGCHLD, &ignore, 0, 8);
	if (!sys_failed(err))
		err = sys(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
	if (!sys_failed(err))
		err = sys(SYS_ppoll, &parent, 1, &(struct timespec){0}, 0, 8);
	if (err != 0)
		child_fail(r, FAIL_CLONE, err < 0 ? err : -ESRCH);
	/* Containers of the pod see it, and one with CAP_SYS_PTRACE reaches its root and can trace it: there is nothing
	 * to gain. Its root is the list of its own descriptors, which is about to be empty for ever. */
	struct {
		uint32_t version;
		int pid;
	} header = {.version = 0x20080522};
	uint32_t no_capabilities[6] = {0};
	err = sys(SYS_chroot, "/proc/self/fdinfo");
	if (!sys_failed(err))
		err = sys(SYS_chdir, "/");
	if (!sys_failed(err))
		err = sys(SYS_capset, &header, no_capabilities);
	if (!sys_failed(err))
		err = sys(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (sys_failed(err))
		child_fail(r, FAIL_CLONE, err);
	(void)sys(SYS_prctl, PR_SET_NAME, "reaper");
	r->phase = REPORT_ENDED;
	(void)sys(SYS_munmap, reports, sizeof *reports * MAX_STARTS);
	(void)sys(SYS_close_range, 0, ~0u, 0);
	for (;;)
		(void)sys(SYS_ppoll, 0, 0, 0, 0, 8); /* every signal that can be blocked is */
}

static _Noreturn void child(struct birth *b)
{
	COLD static int open[MAX_PENDING + 2];
	struct report *r = b->report;
	struct program p = {0};
	if ((b->start->flags & START_REAPER) != 0)
		reaper(r);
	long err = child_prologue();
	if (sys_failed(err))
		child_fail(r, FAIL_CLONE, err);
	err = program_map(b->program, &p);
	if (err == 0)
		err = program_check(&p, b->nown, r);
	if (err != 0)
		child_fail(r, FAIL_PROGRAM, err);
	memcpy(open, b->own, sizeof *open * b->nown);
	open[b->nown] = b->pipe;
	open[b->nown + 1] = pause_pidfd;
	err = close_others(open, b->nown + 2);
	if (sys_failed(err))
		child_fail(r, FAIL_CLONE, err);
	err = program_run(&p, b->own, r);
	if (err != 0)
		child_fail(r, FAIL_INSTR, err);
	r->phase = REPORT_ENDED;
	die(0);
}

/* ---- in the supervisor and in its joiner, which share memory ---- */

static void give_birth(struct birth *b)
{
	b->pid = sys(SYS_clone3, &b->args, sizeof b->args);
	if (b->pid == 0)
		child(b);
}

/* A process of its own only in that its setns does not change pause. */
#ifdef PAUSE_SANITIZE
__attribute__((no_sanitize("address")))
#endif
static int joiner(void *arg)
{
	struct birth *b = arg;
	b->pid = sys(SYS_setns, b->join, CLONE_NEWPID);
	if (!sys_failed(b->pid))
		give_birth(b);
	sys(SYS_exit, 0);
	return 0;
}

static void give_birth_elsewhere(struct birth *b)
{
	siginfo_t info;
	b->args.flags |= CLONE_PARENT;
	b->args.exit_signal = 0; /* with CLONE_PARENT it is the joiner's */
	int pid = clone(joiner, joiner_stack + sizeof joiner_stack, CLONE_VM | CLONE_VFORK | CLONE_FILES | SIGCHLD, b);
	if (pid < 0)
		b->pid = -errno;
	else
		(void)sys(SYS_waitid, P_PID, pid, &info, WEXITED, 0); /* it is our child and has exited */
}

static int start_slot(struct start **s)
{
	for (uint32_t i = 0; i < MAX_STARTS; i++) {
		if (start_at(i)->state == START_FREE) {
			*s = start_at(i);
			if (i >= starts_high)
				starts_high = i + 1;
			return (int)i;
		}
	}
	return -ENOSPC;
}

/* The task that a request starts: a new one for an exec or a reaper. */
static int start_task(const struct msg_start *m, struct task **t)
{
	if ((m->flags & ~(START_EXEC | START_CGROUP | START_JOIN | START_REAPER)) != 0 || (m->clone_flags & ~NAMESPACES) != 0 || m->task == 0)
		return -EINVAL;
	*t = task_find(m->task);
	if ((m->flags & (START_EXEC | START_REAPER)) != 0) {
		if (*t != NULL)
			return -EEXIST;
		*t = exec_new(m->task);
		return *t != NULL ? 0 : -ENOSPC;
	}
	if (*t == NULL)
		return -ENOENT;
	return (*t)->phase == PHASE_ADDED ? 0 : -EALREADY;
}

/* Sorts out the descriptors of a request. What the child runs with is b->fds: the program and its own. */
static int start_fds(const struct request *r, struct birth *b)
{
	uint32_t flags = b->start->flags, have = r->nfds, at = (flags & START_REAPER) == 0;
	uint32_t need = at + ((flags & START_CGROUP) != 0) + ((flags & START_JOIN) != 0);
	if (have < need || have - need > PROGRAM_MAX_FDS)
		return -EBADMSG;
	if ((flags & START_CGROUP) != 0) {
		b->args.flags |= CLONE_INTO_CGROUP;
		b->args.cgroup = (uint64_t)r->fds[at++];
	}
	if ((flags & START_JOIN) != 0)
		b->join = r->fds[at++];
	b->program = r->fds[0]; /* not looked at by a reaper */
	b->own = r->fds + need;
	b->nown = have - need;
	return 0;
}

static void fail_start(struct start *s, enum fail_stage stage, uint32_t index, int error)
{
	s->failed = true;
	s->failure = (struct msg_failed){.stage = stage, .index = index, .error = error};
}

/* The start is decided: tell, and forget the slot once that is out. */
static void answer(struct start *s)
{
	struct task *t = task_at(s->task);
	struct msg_started m = {.pid = t->pid};
	int err = -EPIPE;
	if (s->serial == control_serial) {
		if (s->failed)
			err = control_send(MSG_FAILED, s->id, &s->failure, sizeof s->failure, NULL, 0);
		else
			err = control_send(MSG_STARTED, s->id, &m, sizeof m, &t->pidfd, 1);
	}
	s->state = err == -EAGAIN ? START_ANSWERS : START_FREE;
	if (!s->failed) {
		t->answering = s->state == START_ANSWERS;
		if (!t->answering)
			(void)exit_tell(t);
	}
}

void starts_answer(void)
{
	for (uint32_t i = 0; i < starts_high; i++)
		if (start_at(i)->state == START_ANSWERS)
			answer(start_at(i));
}

static void start_end(struct start *s)
{
	unwatch_close(&s->pipe);
	starts_in_flight--;
}

/* Nothing came to life: the container may be started again, an exec is forgotten. */
static void start_undo(struct start *s)
{
	struct task *t = task_at(s->task);
	unwatch_close(&t->pidfd);
	t->pid = 0;
	t->phase = PHASE_ADDED;
	if (s->task >= MAX_TASKS)
		task_free(t);
	start_end(s);
	answer(s);
}

int start(struct request *r)
{
	struct start *s;
	struct task *t;
	int ends[2];
	struct birth b = {.start = &r->body.start};
	int slot = start_slot(&s);
	int err = slot < 0 ? slot : start_fds(r, &b);
	if (err == 0)
		err = (int)sys(SYS_pipe2, ends, 02000000 /* O_CLOEXEC */);
	if (err != 0)
		return err;
	err = start_task(b.start, &t);
	if (err != 0) {
		(void)sys(SYS_close, ends[0]);
		(void)sys(SYS_close, ends[1]);
		return err;
	}
	b.report = &reports[slot];
	memset((void *)b.report, 0, sizeof *b.report);
	b.pipe = ends[1];
	b.args.flags |= CLONE_PIDFD | b.start->clone_flags;
	if ((b.start->flags & START_REAPER) != 0)
		b.args.flags |= CLONE_NEWPID;
	b.args.exit_signal = SIGCHLD;
	b.args.pidfd = (uint64_t)(uintptr_t)&b.pidfd;
	*s = (struct start){.state = START_RUNS, .id = r->id, .serial = control_serial, .task = t->index, .pipe = ends[0]};
	if (b.join != 0)
		give_birth_elsewhere(&b);
	else
		give_birth(&b);
	(void)sys(SYS_close, ends[1]);
	t->phase = PHASE_STARTING;
	t->slot = (uint32_t)slot;
	t->reaper = (b.start->flags & START_REAPER) != 0;
	starts_in_flight++;
	if (sys_failed(b.pid)) {
		fail_start(s, FAIL_CLONE, 0, (int)-b.pid);
		start_undo(s);
		return 0;
	}
	t->pid = (int)b.pid;
	t->pidfd = b.pidfd;
	if (watch(s->pipe, EPOLLIN, EV_REPORT, (uint32_t)slot) != 0 || watch(t->pidfd, EPOLLIN, EV_PIDFD, t->index) != 0) {
		siginfo_t info; /* out of kernel memory */
		(void)sys(SYS_pidfd_send_signal, t->pidfd, SIGKILL, 0, 0);
		(void)sys(SYS_waitid, P_PIDFD, t->pidfd, &info, WEXITED, 0);
		fail_start(s, FAIL_CLONE, 0, ENOMEM);
		start_undo(s);
	}
	return 0;
}

void start_report(uint32_t slot)
{
	unwatch(start_at(slot)->pipe);
	start_at(slot)->ended = true;
	start_judge(slot);
}

/* Looks at the child and at what it reported. Undecided starts are looked at again when the child dies. */
void start_judge(uint32_t slot)
{
	struct start *s = start_at(slot);
	const struct report *r = &reports[slot];
	struct task *t = task_at(s->task);
	int32_t status = 0;
	if (s->state != START_RUNS)
		return;
	bool dead = task_reap(t, &status);
	bool executed = r->phase == REPORT_EXECS || r->phase == REPORT_ENDED;
	if (r->phase == REPORT_FAILED || !executed) {
		if (dead && r->phase == REPORT_FAILED)
			fail_start(s, r->stage, r->index, r->error);
		else if (dead)
			fail_start(s, FAIL_KILLED, r->index, status);
		if (dead)
			start_undo(s);
		else
			timer_within(10 * MS); /* it is dying, or its Program closed the pipe too early */
		return;
	}
	if (!dead && !s->ended)
		return;
	t->phase = PHASE_RUNNING;
	start_end(s);
	answer(s);
	if (dead)
		task_exited(t, status);
}

/* A Program that closed the pipe by itself is noticed here when it reaches its execve. */
void starts_tick(void)
{
	for (uint32_t i = 0; i < starts_high; i++)
		if (start_at(i)->state == START_RUNS && start_at(i)->ended)
			start_judge(i);
}
