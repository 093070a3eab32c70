package layer

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
)

// newUserNS makes a user namespace with the given maps and no process; the file holds it.
func newUserNS(uids, gids []IDMap) (*os.File, error) {
	f, err := startUserNS(uids, gids)
	if err != nil {
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	return f, nil
}

// startUserNS starts a process in the namespace only to open it there. The process is traced from birth, so it stops
// before the first instruction of its program and is killed there.
func startUserNS(uids, gids []IDMap) (ns *os.File, err error) {
	runtime.LockOSThread() // the tracer is a thread
	defer runtime.UnlockOSThread()
	p, err := os.StartProcess("/proc/self/exe", []string{"userns"}, &os.ProcAttr{
		Sys: &syscall.SysProcAttr{
			Cloneflags:                 syscall.CLONE_NEWUSER,
			UidMappings:                sysMaps(uids),
			GidMappings:                sysMaps(gids),
			GidMappingsEnableSetgroups: true,
			Ptrace:                     true,
			Pdeathsig:                  syscall.SIGKILL,
		},
	})
	if err != nil {
		return nil, err
	}
	ns, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", p.Pid))
	err = errors.Join(err, p.Kill())
	if _, waited := p.Wait(); waited != nil {
		err = errors.Join(err, waited)
	}
	if err != nil && ns != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return ns, err
}

func sysMaps(maps []IDMap) (list []syscall.SysProcIDMap) {
	for _, m := range maps {
		list = append(list, syscall.SysProcIDMap{ContainerID: int(m.Inside), HostID: int(m.Outside), Size: int(m.Count)})
	}
	return list
}
