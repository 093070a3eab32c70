/*
 * boot.c - the one Program that runs in pause itself, while it has a single thread: it makes the
 * namespaces that the pod shares.
 */
#include <sys/prctl.h>

#include "pause.h"

bool booted;

static int fail(struct msg_failed *f, enum fail_stage stage, uint32_t index, int err)
{
	f->stage = stage;
	f->index = index;
	f->error = -err;
	return err;
}

int boot(struct request *r, struct msg_failed *f)
{
	struct program p = {0};
	struct report report = {0};
	if (r->nfds < 1)
		return fail(f, FAIL_REQUEST, 0, -EBADMSG);
	if (booted || writer_runs || tasks_high != 0 || execs_high != 0)
		return fail(f, FAIL_REQUEST, 0, -EBUSY);
	int err = program_map(r->fds[0], &p);
	if (err == 0)
		err = program_check(&p, r->nfds - 1, &report);
	if (err == 0 && (p.head->flags & PROGRAM_EXECS) != 0)
		err = -EINVAL;
	if (err != 0) {
		program_unmap(&p);
		return fail(f, FAIL_PROGRAM, report.index, err);
	}
	booted = true; /* also when it fails half way: the pod cannot be used */
	err = program_run(&p, r->fds + 1, &report);
	program_unmap(&p);
	if (err == 0) /* a change of credentials may have undone it */
		err = (int)sys(SYS_prctl, PR_SET_DUMPABLE, 0);
	if (err == 0)
		err = control_identify();
	if (err != 0)
		return fail(f, FAIL_INSTR, report.index, err);
	return 0;
}
