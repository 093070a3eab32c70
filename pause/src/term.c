/*
 * term.c - SIGTERM, which systemd sends to all processes of a pod that it stops, and of the machine when it shuts down.
 * Containers end by it or not, as they like; pause ends when none of them lives, and so holds up nobody. A SIGTERM that
 * somebody sends to the pause of a pod in use must do no harm later: it counts for TERM_BOUND, and until the next start
 * of a container.
 */
#include <signal.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>

#include "pause.h"

uint64_t term_since;

static int signals;

int term_init(void)
{
	uint64_t mask = 1ull << (SIGTERM - 1); /* is blocked, as all are */
	signals = (int)sys(SYS_signalfd4, -1, &mask, sizeof mask, SFD_CLOEXEC | SFD_NONBLOCK);
	return sys_failed(signals) ? signals : watch(signals, EPOLLIN, EV_TERM, 0);
}

void term_event(void)
{
	struct signalfd_siginfo info;
	if (sys(SYS_read, signals, &info, sizeof info) == sizeof info)
		term_since = now();
}

/* Execs do not count: they live in the leaves of containers and end with them. */
static bool container_lives(void)
{
	struct task *t;
	for (uint32_t i = 0; (t = next_task(&i)) != NULL;)
		if (!is_exec(t) && t->phase >= PHASE_STARTING && t->phase <= PHASE_DRAINING)
			return true;
	return false;
}

/* After every event. What pause owes a client is sent before it ends. */
void term_look(void)
{
	if (term_since == 0 || container_lives() || control_blocked())
		return;
	if (now() - term_since < TERM_BOUND)
		die(0);
	term_since = 0;
}
