/*
 * boot.c - the one Program that runs in pause itself, while it has a single thread: it makes the
 * namespaces that the pod shares.
 */
#include <sys/prctl.h>

#include "pause.h"

bool booted;

int boot(struct request *r)
{
	struct program p = {0};
	struct report report = {0};
	if (r->nfds < 1)
		return -EBADMSG;
	if (booted || writer_runs || execs_high != 0)
		return -EBUSY;
	int err = program_map(r->fds[0], &p);
	if (err == 0)
		err = program_check(&p, r->nfds - 1, &report);
	if (err == 0 && (p.head->flags & PROGRAM_EXECS) != 0)
		err = -EINVAL;
	if (err == 0) {
		booted = true; /* also when it fails half way: the pod cannot be used */
		err = program_run(&p, r->fds + 1, &report);
		if (err == 0) /* a change of credentials may have undone it */
			err = (int)sys(SYS_prctl, PR_SET_DUMPABLE, 0);
		if (err == 0)
			err = control_identify();
	}
	program_unmap(&p);
	if (err == 0)
		return 0;
	reply_failed(r->from, booted ? FAIL_INSTR : FAIL_PROGRAM, report.index, -err);
	return ANSWERED;
}
