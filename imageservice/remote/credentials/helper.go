package credentials

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"

	"github.com/criserver/criserver/command"
)

const (
	helperPrefix = "docker-credential-"
	maxAnswer    = 64 << 10 // bytes that a helper may write to an output

	// tokenUser is the user name that says that the secret is an identity token.
	tokenUser = "<token>"
)

// helperName keeps a name from leading out of PATH.
var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// notFound are what helpers say when they have nothing for the server, which is no failure.
var notFound = []string{"credentials not found in native keychain", "no credentials server URL", "no credentials username"}

var errTooMuch = fmt.Errorf("it writes more than %d bytes", maxAnswer)

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
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.HelperTimeout, fmt.Errorf("no answer in %v", s.cfg.HelperTimeout))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	tooMuch := func() { stop(errTooMuch) }
	stdout, stderr := command.Output{Max: maxAnswer, Full: tooMuch}, command.Output{Max: maxAnswer, Full: tooMuch}
	get := command.Command{Path: path, Args: []string{path, "get"}, Stdin: strings.NewReader(server), Stdout: &stdout, Stderr: &stderr}
	err := get.Run(ctx)
	if stdout.Cut() || stderr.Cut() {
		return nil, errTooMuch
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", exit, said(&stdout, &stderr))
	}
	return stdout.Bytes(), err
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
func said(stdout, stderr *command.Output) string {
	text := stderr.Excerpt(maxAnswer)
	if text == "" {
		text = stdout.Excerpt(maxAnswer) // helpers write their errors there
	}
	text = text[strings.LastIndexByte(text, '\n')+1:]
	if len(text) > 200 {
		text = text[:200]
	}
	return fmt.Sprintf("%q", text)
}
