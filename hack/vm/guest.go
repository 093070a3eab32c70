package main

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// guestFiles are laid over the root of every guest.
//
//go:embed guest/root
var guestFiles embed.FS

// guest is one run of a flavour: a directory with its payload and with what comes back.
type guest struct {
	flavour flavour
	machine machine
	timeout time.Duration
	dir     string
}

func newGuest(ctx context.Context, f flavour, timeout time.Duration) (*guest, error) {
	c, err := openCache(ctx)
	if err != nil {
		return nil, err
	}
	g := &guest{flavour: f, timeout: timeout}
	if g.machine, err = c.machine(ctx, f); err != nil {
		return nil, err
	}
	g.dir, err = os.MkdirTemp("", "vm-")
	return g, err
}

func (g *guest) remove()         { _ = os.RemoveAll(g.dir) } // what stays is only in the way of nobody
func (g *guest) results() string { return filepath.Join(g.dir, "results") }
func (g *guest) disk() string    { return filepath.Join(g.dir, "disk") }

// resetWord is what a guest says in place of an exit status before it is reset without warning (guest/root/usr/lib/vm/run).
const resetWord = "again"

// load packs the payload: the programs of the project, tests of packages, and the command.
func (g *guest) load(ctx context.Context, packages []string, command string) error {
	repo, err := repository()
	if err != nil {
		return err
	}
	payload := filepath.Join(g.dir, "payload")
	if err := copyGuestFiles(filepath.Join(payload, "guest")); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(payload, "command"), []byte(command), 0o644); err != nil {
		return err
	}
	if err := tell(ctx, repo, "make", "-s", "build"); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(payload, "bin"), 0o755); err != nil {
		return err
	}
	if err := tell(ctx, filepath.Join(repo, "bin"), "cp", "-R", "criserver", "pause", "cni", filepath.Join(payload, "bin")); err != nil {
		return err
	}
	if err := buildTests(ctx, repo, filepath.Join(payload, "tests"), packages); err != nil {
		return err
	}
	if err := erofsImage(ctx, filepath.Join(g.dir, "payload.erofs"), payload, "bin_t"); err != nil {
		return err
	}
	return os.RemoveAll(payload)
}

// testDir is the name of the directory of a package's tests in /payload/tests.
func testDir(pkg string) string { return strings.ReplaceAll(pkg, "/", "-") }

// buildTests makes, in dir, for each package a directory with its tests as a program and with their data, and test2json.
func buildTests(ctx context.Context, repo, dir string, packages []string) error {
	build := func(args ...string) error {
		return tell(ctx, repo, "env", append([]string{"CGO_ENABLED=0", "go"}, args...)...)
	}
	for _, pkg := range packages {
		to := filepath.Join(dir, testDir(pkg))
		if err := build("test", "-c", "-o", filepath.Join(to, "test"), "./"+pkg); err != nil {
			return err
		}
		data := os.DirFS(filepath.Join(repo, pkg, "testdata"))
		if err := os.CopyFS(filepath.Join(to, "testdata"), data); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return build("build", "-o", filepath.Join(dir, "test2json"), "cmd/test2json")
}

// copyGuestFiles writes guestFiles to dir. Those in lib/vm are programs.
func copyGuestFiles(dir string) error {
	files, err := fs.Sub(guestFiles, "guest/root")
	if err != nil {
		return err
	}
	return fs.WalkDir(files, ".", func(path string, d fs.DirEntry, err error) error {
		target := filepath.Join(dir, path)
		if err != nil || d.IsDir() {
			return errors.Join(err, os.MkdirAll(target, 0o755))
		}
		text, err := fs.ReadFile(files, path)
		if err != nil {
			return err
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(path, "usr/lib/vm/") {
			mode = 0o755
		}
		return os.WriteFile(target, text, mode)
	})
}

// run boots the guest and returns the exit status of its command. A guest that dies before there is one gets a second life.
func (g *guest) run(ctx context.Context, output io.Writer) (status int, err error) {
	for range 2 {
		began := time.Now()
		status, err = g.live(ctx, output)
		fmt.Fprintf(os.Stderr, "guest %s lived for %.0f s\n", g.flavour.name, time.Since(began).Seconds())
		var died *diedError
		if !errors.As(err, &died) {
			return status, err
		}
		fmt.Fprintf(os.Stderr, "guest %s died; its console:\n%s", g.flavour.name, died.console)
	}
	return 0, err
}

// diedError is of a guest that ended without an exit status.
type diedError struct {
	console []byte
	cause   error
}

func (e *diedError) Error() string { return "guest ended without an exit status: " + e.cause.Error() }

// live boots the guest, again whenever its command has had it reset, until there is an exit status.
func (g *guest) live(ctx context.Context, output io.Writer) (status int, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, g.timeout, fmt.Errorf("it lived longer than %v", g.timeout))
	defer cancel()
	if err := g.blank(); err != nil {
		return 0, err
	}
	for boot := 0; ; boot++ {
		again, status, err := g.boot(ctx, boot, output)
		if !again || err != nil {
			return status, err
		}
	}
}

// blank empties what outlives a reset: the results, and the disk if there is one.
func (g *guest) blank() error {
	if err := os.WriteFile(g.results(), nil, 0o644); err != nil || g.flavour.disk == 0 {
		return err
	}
	if err := os.WriteFile(g.disk(), nil, 0o600); err != nil {
		return err
	}
	return os.Truncate(g.disk(), g.flavour.disk)
}

// boot runs qemu once. again says that the guest was reset on purpose.
func (g *guest) boot(ctx context.Context, boot int, output io.Writer) (again bool, status int, err error) {
	for _, name := range []string{"status", "console"} {
		if err := os.WriteFile(filepath.Join(g.dir, name), nil, 0o644); err != nil {
			return false, 0, err
		}
	}
	command, env := qemuCommand(g.machine.qemu)
	cmd := exec.CommandContext(ctx, command[0], append(command[1:], g.qemuArgs(boot)...)...)
	cmd.Env = env
	cmd.Stdout = struct{ io.Writer }{output} // not a file, so that qemu has a pipe
	var problems bytes.Buffer
	cmd.Stderr = &problems
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	ran := cmd.Run()
	text, err := os.ReadFile(filepath.Join(g.dir, "status"))
	if err != nil {
		return false, 0, err
	}
	said := strings.Fields(string(text))
	switch {
	case len(said) == 0:
	case said[len(said)-1] != resetWord:
		status, err = strconv.Atoi(said[len(said)-1])
		return false, status, err
	case ctx.Err() == nil:
		return true, 0, nil
	}
	console, _ := os.ReadFile(filepath.Join(g.dir, "console")) // without it the cause must do
	switch {
	case ctx.Err() != nil:
		return false, 0, fmt.Errorf("%w; its console:\n%s", context.Cause(ctx), console)
	case ran == nil:
		ran = errors.New("it panicked or stopped")
	}
	return false, 0, &diedError{console: append(console, problems.Bytes()...), cause: ran}
}

// qemuArgs describes the guest, which learns how often it was reset. Of kernel parameters there is room for 2,048 bytes only.
func (g *guest) qemuArgs(boot int) []string {
	params := append([]string{"console=ttyS0", "quiet", "panic=-1", "mitigations=off", "nokaslr",
		"init=" + g.flavour.init, fmt.Sprintf("vm.boot=%d", boot)}, g.flavour.params...)
	args := []string{"-M", "pc,usb=off", "-nodefaults", "-vga", "none", "-display", "none", "-monitor", "none", "-no-reboot",
		"-smp", "2", "-m", "2048",
		"-kernel", filepath.Join(g.machine.kernel, "vmlinuz"), "-initrd", filepath.Join(g.machine.kernel, "initrd"),
		"-append", strings.Join(params, " "),
		"-serial", "file:" + filepath.Join(g.dir, "console"),
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci"}
	args = append(args, processor()...)
	for _, port := range [][2]string{{"output", "/dev/stdout"}, {"status", filepath.Join(g.dir, "status")}, {"results", g.results()}} {
		args = append(args, "-chardev", "file,append=on,id="+port[0]+",path="+port[1], "-device", "virtserialport,chardev="+port[0]+",name="+port[0])
	}
	for _, disk := range []string{
		"snapshot=on,file=" + filepath.Join(g.machine.root, "root.ext4"), // what is written goes with the guest
		"readonly=on,file=" + filepath.Join(g.machine.kernel, "modules.erofs"),
		"readonly=on,file=" + filepath.Join(g.dir, "payload.erofs"),
	} {
		args = append(args, "-drive", "if=virtio,format=raw,"+disk)
	}
	if g.flavour.disk > 0 { // what the guest has handed over is in this machine's page cache, which no reset of it empties
		args = append(args, "-drive", "if=virtio,format=raw,cache=writeback,file="+g.disk())
	}
	return args
}

// processor chooses KVM where the processor has what it needs: /dev/kvm alone is also there on machines that are guests
// themselves and run only kernels made for that. In software, a plain processor is fastest.
func processor() []string {
	text, err := os.ReadFile("/proc/cpuinfo")
	flags, _, _ := strings.Cut(string(text), "\nbugs")
	if err == nil && (strings.Contains(flags, " vmx") || strings.Contains(flags, " svm")) && unix.Access("/dev/kvm", unix.R_OK|unix.W_OK) == nil {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	return []string{"-accel", "tcg,thread=multi", "-cpu", "Nehalem,-spec-ctrl"}
}
