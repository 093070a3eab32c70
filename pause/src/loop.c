/*
 * loop.c - birth of pause and the supervisor's event loop.
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <time.h>

#include "pause.h"
#include "state.h"

/* The first in its section: row 0 shares a page with the small variables of the other files. */
COLD struct tables tables;

int pause_pidfd;
uint32_t pause_pid;

static int epoll, timer;
static uint64_t timer_due; /* 0: not armed */

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec t = {0};
	if (clock_gettime(clock, &t) != 0)
		return 0;
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t now(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

uint64_t wall_time(void)
{
	return clock_ns(CLOCK_REALTIME);
}

_Noreturn void die(int status)
{
	(void)sys(SYS_exit_group, status);
	__builtin_trap(); /* a seccomp filter of a Program that failed may forbid even that */
}

static uint64_t event_key(enum event_kind kind, uint32_t index)
{
	return (uint64_t)kind << 32 | index;
}

int watch(int fd, uint32_t events, enum event_kind kind, uint32_t index)
{
	struct epoll_event e = {.events = events, .data.u64 = event_key(kind, index)};
	return (int)sys(SYS_epoll_ctl, epoll, EPOLL_CTL_ADD, fd, &e);
}

/* Only for descriptors that are watched already, so that it cannot fail. */
void rewatch(int fd, uint32_t events, enum event_kind kind, uint32_t index)
{
	struct epoll_event e = {.events = events, .data.u64 = event_key(kind, index)};
	if (sys_failed(sys(SYS_epoll_ctl, epoll, EPOLL_CTL_MOD, fd, &e)))
		die(4);
}

/* A descriptor is taken out before it is closed: a child may hold a copy for a moment, which would keep it in. */
void unwatch(int fd)
{
	(void)sys(SYS_epoll_ctl, epoll, EPOLL_CTL_DEL, fd, 0); /* ENOENT: was not watched */
}

void unwatch_close(int *fd)
{
	if (*fd == 0)
		return;
	unwatch(*fd);
	(void)sys(SYS_close, *fd); /* the descriptor is gone whatever it returns */
	*fd = 0;
}

int set_nonblocking(int fd)
{
	long flags = sys(SYS_fcntl, fd, F_GETFL);
	return (int)(sys_failed(flags) ? flags : sys(SYS_fcntl, fd, F_SETFL, flags | O_NONBLOCK));
}

/* timer_within makes a tick happen at most ns from now. */
void timer_within(uint64_t ns)
{
	uint64_t due = now() + ns;
	if (timer_due != 0 && timer_due <= due)
		return;
	struct itimerspec t = {.it_value = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)}};
	if (sys_failed(sys(SYS_timerfd_settime, timer, 0, &t, 0)))
		die(4);
	timer_due = due;
}

static void timer_event(void)
{
	uint64_t expirations;
	(void)sys(SYS_read, timer, &expirations, sizeof expirations); /* EAGAIN: it was set anew */
	timer_due = 0;
	control_tick();
	writer_tick();
	tasks_tick();
}

static void process_event(struct task *t)
{
	int32_t status;
	if (!task_reap(t, &status))
		return;
	if (t->phase == PHASE_STARTING)
		start_died(t, status);
	else
		task_exited(t, status);
}

static void dispatch(const struct epoll_event *e)
{
	uint32_t index = (uint32_t)e->data.u64;
	switch ((enum event_kind)(e->data.u64 >> 32)) {
	case EV_CONTROL:
		control_event(e->events);
		break;
	case EV_LISTENER:
		control_accept();
		break;
	case EV_TIMER:
		timer_event();
		break;
	case EV_WRITER:
		writer_heard();
		tasks_told();
		break;
	case EV_PIDFD:
		process_event(task_at(index));
		break;
	case EV_REPORT:
		start_report(task_at(index));
		break;
	case EV_LEAF:
		task_advance(task_at(index));
		break;
	case EV_TTY:
		terminal_event(task_at(index));
		break;
	case EV_TTY_PIPE:
		terminal_room(task_at(index));
		break;
	case EV_TERM:
		term_event();
		break;
	}
	term_look();
	if (reexec_pending)
		reexec_go_on();
}

/* One event at a time: what one event closes, no later one can name. */
_Noreturn void loop(void)
{
	for (;;) {
		struct epoll_event e;
		long n = sys(SYS_epoll_pwait, epoll, &e, 1, -1, 0, 8);
		if (n == 1)
			dispatch(&e);
		else if (n != -EINTR)
			die(4);
	}
}

/*
 * Nothing that can be sent casually ends pause (for SIGTERM see term.c), and its children inherit what a new process
 * expects: every signal at its default action (they only have to empty the mask).
 */
static void init_signals(void)
{
	struct {
		void *handler;
		unsigned long flags;
		void *restorer;
		uint64_t mask;
	} action = {0};
	uint64_t mask = ~0ull;
#ifdef PAUSE_SANITIZE /* its handlers for crashes stay */
	for (const int *s = (const int[]){SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, 0}; *s != 0; s++)
		mask &= ~(1ull << (*s - 1));
#endif
	for (int s = 1; s <= 64; s++)
		if ((mask & 1ull << (s - 1)) != 0 && s != SIGKILL && s != SIGSTOP)
			(void)sys(SYS_rt_sigaction, s, &action, 0, 8);
	if (sys_failed(sys(SYS_rt_sigprocmask, SIG_SETMASK, &mask, 0, 8)))
		die(3);
}

/* The numbers of standard input, output and error must never come to mean something else. */
static void init_stdio(void)
{
	long fd;
	do
		fd = sys(SYS_eventfd2, 0, 0);
	while (fd >= 0 && fd <= 2);
	if (sys_failed(fd))
		die(3);
	(void)sys(SYS_close, fd);
}

static void init(int state)
{
	init_signals();
	init_stdio();
	(void)sys(SYS_umask, 022);
	if (sys_failed(sys(SYS_prctl, PR_SET_DUMPABLE, 0)) || sys_failed(sys(SYS_prctl, PR_SET_NAME, "pause")))
		die(3);
	if (sys_failed(sys(SYS_close_range, 3, ~0u, CLOSE_RANGE_CLOEXEC)))
		die(3);
	pause_pid = (uint32_t)sys(SYS_getpid);
	pause_pidfd = (int)sys(SYS_pidfd_open, pause_pid, 0);
	epoll = (int)sys(SYS_epoll_create1, EPOLL_CLOEXEC);
	timer = (int)sys(SYS_timerfd_create, CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (pause_pidfd < 0 || epoll < 0 || timer < 0 || watch(timer, EPOLLIN, EV_TIMER, 0) != 0)
		die(3);
	if (term_init() != 0 || starts_init() != 0 || exits_init() != 0)
		die(3);
	if (state != 0 ? reexec_restore(state) != 0 : control_init(false) != 0)
		die(3);
}

#ifdef PAUSE_SANITIZE
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "detect_leaks=0:abort_on_error=1:handle_segv=1";
}
const char *__ubsan_default_options(void);
const char *__ubsan_default_options(void)
{
	return "halt_on_error=1:abort_on_error=1:print_stacktrace=1";
}
#endif

/* pause [state | question]: state is the number of the descriptor that a predecessor left its tables in. */
int main(int argc, char **argv)
{
	int state = 0;
	if (argc == 2 && strcmp(argv[1], STATE_QUESTION) == 0)
		die(STATE_READABLE);
	if (argc == 2)
		for (const char *c = argv[1]; *c >= '0' && *c <= '9' && state < 1000000; c++)
			state = state * 10 + (*c - '0');
	init(state);
	loop();
}
