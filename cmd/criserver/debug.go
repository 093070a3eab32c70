package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/ociruntime"
	"github.com/criserver/criserver/ociruntime/cgroup"
	"github.com/criserver/criserver/ociruntime/mount"
	"github.com/criserver/criserver/ociruntime/seccomp"
)

// debugRun holds the flags of `criserver debug run`.
type debugRun struct {
	pause, user, seccomp, parent string
	userns                       uint32
	memory, pids                 int64
	readonly, noNewPrivs, print  bool
	stdio                        []*os.File // of the container; what is printed goes to the second
}

// containerError is the end of a container with a code that is not 0; criserver exits with that code too.
type containerError struct{ code int32 }

func (e containerError) Error() string { return fmt.Sprintf("container exited with code %d", e.code) }

// newDebug returns commands for people who look into the runtime.
func newDebug() *cobra.Command {
	debug := &cobra.Command{Use: "debug", Short: "Look into the embedded runtime"}
	d := &debugRun{stdio: []*os.File{os.Stdin, os.Stdout, os.Stderr}}
	run := &cobra.Command{
		Use:   "run DIR -- COMMAND [ARG...]",
		Short: "Run a command in a container whose root file system is a directory",
		Long: `Run starts a pod on the host's network and in it one container whose root file system is DIR, waits for it and
exits with its code. SIGINT and SIGTERM kill the container. Nothing else of criserver takes part and nothing is left
behind. With --print it prints the system calls that the start would make, and makes none of them.`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGTERM, unix.SIGINT)
			defer stop()
			return d.run(ctx, args[0], args[1:])
		},
	}
	f := run.Flags()
	f.StringVar(&d.pause, "pause", "", "the pause binary; empty: where serve finds it")
	f.StringVar(&d.user, "user", "0:0", "UID:GID of the process")
	f.Uint32Var(&d.userns, "userns", 0, "give the pod a user namespace whose root is this id of the host")
	f.StringVar(&d.seccomp, "seccomp", "default", "default, unconfined or the path of a profile")
	f.StringVar(&d.parent, "cgroup-parent", "/criserver-debug", "cgroup in which the leaves are made")
	f.Int64Var(&d.memory, "memory", 0, "memory limit in bytes; 0: none")
	f.Int64Var(&d.pids, "pids", 0, "limit of processes; 0: none")
	f.BoolVar(&d.readonly, "read-only", false, "make the root file system read-only")
	f.BoolVar(&d.noNewPrivs, "no-new-privileges", false, "set no_new_privs")
	f.BoolVar(&d.print, "print", false, "print the Program instead of running it")
	debug.AddCommand(run)
	return debug
}

func (d *debugRun) run(ctx context.Context, dir string, args []string) (err error) {
	state, err := os.MkdirTemp("", "criserver-debug-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(state)) }()
	binary, err := findPause(d.pause)
	if err != nil {
		return err
	}
	hierarchies, err := cgroup.Detect()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hierarchies.Close()) }()
	rt, err := ociruntime.New(ociruntime.Config{PauseBinary: binary, WorkDir: state, Cgroups: hierarchies, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rt.Close()) }()
	pod, err := rt.StartPod(ctx, d.pod(state))
	if err != nil {
		return fmt.Errorf("start pod: %w", err)
	}
	defer func() { err = errors.Join(err, pod.Stop(context.WithoutCancel(ctx))) }()
	return d.container(ctx, pod, dir, args)
}

func (d *debugRun) pod(dir string) ociruntime.PodConfig {
	c := ociruntime.PodConfig{ID: newID(), Dir: dir, Hostname: "debug", HostNetwork: d.userns == 0, CgroupParent: d.parent}
	if d.userns != 0 {
		m := []specs.LinuxIDMapping{{HostID: d.userns, Size: 65536}}
		c.UserNS = &ociruntime.IDMap{UIDs: m, GIDs: m}
	}
	return c
}

func (d *debugRun) container(ctx context.Context, pod *ociruntime.Pod, dir string, args []string) (err error) {
	spec, err := d.spec(args)
	if err != nil {
		return err
	}
	root, err := d.root(pod, dir)
	if err != nil {
		return err
	}
	c, err := pod.Create(ctx, ociruntime.ContainerConfig{ID: newID(), Spec: spec, Root: root, Stdio: d.stdio})
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	defer func() { err = errors.Join(err, c.Delete(context.WithoutCancel(ctx))) }()
	if d.print {
		text, err := c.Explain()
		if err != nil {
			return err
		}
		_, err = d.stdio[1].WriteString(text)
		return err
	}
	if err := c.Start(context.WithoutCancel(ctx)); err != nil { // what is to be killed must have started
		return fmt.Errorf("start container: %w", err)
	}
	select {
	case <-c.Exited():
	case <-ctx.Done():
		if err := c.Kill(context.WithoutCancel(ctx)); err != nil {
			return fmt.Errorf("kill container: %w", err)
		}
		<-c.Exited()
	}
	if exit, _ := c.Exit(); exit.Code != 0 {
		return containerError{exit.Code}
	}
	return nil
}

// root clones the directory's mount. In a user namespace its files keep their owners, by an id mapping that the file
// system must be able to do.
func (d *debugRun) root(pod *ociruntime.Pod, dir string) (*os.File, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	source, err := mount.OpenSource(abs)
	if err != nil {
		return nil, err
	}
	defer func() { _ = source.Close() }()
	options := mount.Options{RecBind: true, Propagation: unix.MS_PRIVATE}
	if d.userns == 0 {
		return mount.Bind(source, options, nil)
	}
	users, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pod.Pid()))
	if err != nil {
		return nil, err
	}
	defer func() { _ = users.Close() }()
	options.IDMap = true
	return mount.Bind(source, options, users)
}

func (d *debugRun) spec(args []string) (*specs.Spec, error) {
	spec := ociruntime.DefaultSpec(args...)
	uid, gid, err := parseUser(d.user)
	if err != nil {
		return nil, err
	}
	spec.Process.User = specs.User{UID: uid, GID: gid}
	spec.Process.NoNewPrivileges = d.noNewPrivs
	spec.Root.Readonly = d.readonly
	if d.memory != 0 {
		spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &d.memory}
	}
	if d.pids != 0 {
		spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &d.pids}
	}
	switch d.seccomp {
	case "unconfined":
	case "default":
		spec.Linux.Seccomp = seccomp.DefaultProfile(spec.Process.Capabilities.Bounding)
	default:
		spec.Linux.Seccomp, err = seccomp.LoadProfile(d.seccomp)
	}
	return spec, err
}

func parseUser(s string) (uid, gid uint32, err error) {
	u, g, _ := strings.Cut(s, ":")
	if g == "" {
		g = "0"
	}
	id, err := strconv.ParseUint(u, 10, 32)
	group, err2 := strconv.ParseUint(g, 10, 32)
	if err := errors.Join(err, err2); err != nil {
		return 0, 0, fmt.Errorf("user %q is not UID:GID", s)
	}
	return uint32(id), uint32(group), nil
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
