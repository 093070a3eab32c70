package credentials

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"
)

const (
	helperPrefix = "docker-credential-"
	maxAnswer    = 64 << 10 // bytes that a helper may write to an output

	// lingering is how long a helper's children may keep its output open after it has ended.
	lingering = time.Second

	// tokenUser is the user name that says that the secret is an identity token.
	tokenUser = "<token>"
)

// helperName keeps a name from leading out of PATH.
var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// notFound are what helpers say when they have nothing for the server, which is no failure.
var notFound = []string{"credentials not found in native keychain", "no credentials server URL", "no credentials username"}

var errTooMuch = fmt.Errorf("it writes more than %d bytes", maxAnswer)

// output keeps the begin of what a helper writes and calls full when that is too much.
type output struct {
	kept bytes.Buffer // not embedded: io.Copy would fill it past Write
	full func()
}

func (o *output) Write(p []byte) (int, error) {
	if o.kept.Len()+len(p) > maxAnswer {
		o.full()
		return 0, errTooMuch
	}
	return o.kept.Write(p)
}

// program finds the executable of a helper.
func program(name string) (path string, err error) {
	if !helperName.MatchString(name) {
		return "", fmt.Errorf("credential helper %q: not the name of a program", name)
	}
	if path, err = exec.LookPath(helperPrefix + name); err != nil {
		return "", fmt.Errorf("credential helper %s%s: not an executable in PATH", helperPrefix, name)
	}
	return path, nil
}

// ask runs a helper for the secret of a server.
func (s *Store) ask(ctx context.Context, name, server string) (Credential, error) {
	path, err := program(name)
	if err != nil {
		return Credential{}, fmt.Errorf("credentials file %s: %w", s.cfg.File, err)
	}
	fail := func(cause error) (Credential, error) {
		return Credential{}, fmt.Errorf("credential helper %s%s: for %s: %w", helperPrefix, name, server, cause)
	}
	stdout, err := s.run(ctx, path, server)
	switch {
	case err != nil && saysNotFound(stdout):
		return Credential{}, nil
	case err != nil:
		return fail(err)
	}
	var answer struct{ Username, Secret string }
	if err := json.Unmarshal(stdout, &answer); err != nil { // its text would quote the answer
		return fail(fmt.Errorf("its answer of %d bytes is not the JSON of a credential", len(stdout)))
	}
	if answer.Username == "" || answer.Secret == "" {
		return fail(errors.New("its answer lacks Username or Secret"))
	}
	c := Credential{Username: answer.Username, Password: answer.Secret, Origin: "helper " + helperPrefix + name}
	if answer.Username == tokenUser {
		c = Credential{IdentityToken: answer.Secret, Origin: c.Origin}
	}
	return c, nil
}

// run returns what the helper wrote to its standard output, also if it failed.
func (s *Store) run(ctx context.Context, path, server string) ([]byte, error) {
	late := fmt.Errorf("no answer in %v", s.cfg.HelperTimeout)
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.HelperTimeout, late)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	tooMuch := func() { stop(errTooMuch) }
	stdout, stderr := &output{full: tooMuch}, &output{full: tooMuch}

	cmd := exec.CommandContext(ctx, path, "get")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(server), stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	kill := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Cancel, cmd.WaitDelay = kill, lingering
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) { // a child of it has the output still
		_ = kill() // may be gone by now
		err = nil
	}
	if ctx.Err() != nil {
		return nil, plain(context.Cause(ctx))
	}
	if err == nil {
		return stdout.kept.Bytes(), nil
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return nil, err
	}
	return stdout.kept.Bytes(), fmt.Errorf("%w: %s", exit, said(stdout, stderr))
}

// plain keeps the helper's own bound from passing for the end of the caller's time.
func plain(cause error) error {
	if errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return errors.New(cause.Error())
}

func saysNotFound(stdout []byte) bool {
	text := strings.TrimSpace(string(stdout))
	for _, s := range notFound {
		if text == s {
			return true
		}
	}
	return false
}

// said is the begin of the last line that the helper wrote, fit for a line of a log.
func said(stdout, stderr *output) string {
	text := strings.TrimSpace(stderr.kept.String())
	if text == "" {
		text = strings.TrimSpace(stdout.kept.String()) // helpers write their errors there
	}
	text = text[strings.LastIndexByte(text, '\n')+1:]
	if len(text) > 200 {
		text = text[:200]
	}
	return fmt.Sprintf("%q", text)
}
