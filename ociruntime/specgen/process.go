package specgen

import (
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime/user"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func (g *generator) process() error {
	p, c := g.spec.Process, g.Container
	var err error
	if p.Args, err = g.args(); err != nil {
		return err
	}
	if p.Env, err = g.env(); err != nil {
		return err
	}
	switch dir := c.GetWorkingDir(); {
	case dir != "" && !isAbsolute(dir):
		return invalid("working_dir", "%q is not an absolute path", dir)
	case dir != "":
		p.Cwd = path.Clean(dir)
	default:
		p.Cwd = path.Clean("/" + g.Image.Config.WorkingDir)
	}
	p.Terminal = c.GetTty()
	p.NoNewPrivileges = g.security.GetNoNewPrivs()
	p.Rlimits = g.rlimits()
	// Without a value of its own, the container would inherit that of the pod's pause, which the kernel kills last.
	score := c.GetLinux().GetResources().GetOomScoreAdj()
	if score < -1000 || score > 1000 {
		return invalid("linux.resources.oom_score_adj", "%d is not between -1000 and 1000", score)
	}
	p.OOMScoreAdj = new(int(score))
	return nil
}

// args joins command and arguments by Docker's rules: a command replaces ENTRYPOINT and CMD, arguments replace CMD.
func (g *generator) args() ([]string, error) {
	command, args := g.Container.GetCommand(), g.Container.GetArgs()
	if err := errors.Join(noNUL("command", command), noNUL("args", args)); err != nil {
		return nil, err
	}
	if len(command) == 0 {
		command = g.Image.Config.Entrypoint
		if len(command) == 1 && command[0] == "" {
			command = nil
		}
		if len(args) == 0 {
			args = g.Image.Config.Cmd
		}
	}
	all := slices.Concat(command, args)
	if len(all) == 0 || all[0] == "" {
		return nil, invalid("command", "no command specified, neither here nor in the image")
	}
	return all, nil
}

func noNUL(field string, list []string) error {
	for i, s := range list {
		if strings.ContainsRune(s, 0) {
			return invalid(indexed(field, i), "contains a NUL byte")
		}
	}
	return nil
}

// env joins the handler's variables, the image's, HOSTNAME, TERM and those of the request; later ones win and keep the first one's place.
func (g *generator) env() ([]string, error) {
	var all []string
	set := func(v string) {
		key, _, _ := strings.Cut(v, "=")
		if i := slices.IndexFunc(all, func(have string) bool { return have == key || strings.HasPrefix(have, key+"=") }); i >= 0 {
			all[i] = v
			return
		}
		all = append(all, v)
	}
	set(defaultPath)
	for _, v := range g.Handler.Env {
		set(v)
	}
	for _, v := range g.Image.Config.Env {
		if strings.ContainsRune(v, 0) {
			return nil, fmt.Errorf("image config: Env: %q contains a NUL byte", v)
		}
		set(v)
	}
	set("HOSTNAME=" + g.Hostname)
	if g.Container.GetTty() {
		set("TERM=xterm")
	}
	for i, e := range g.Container.GetEnvs() {
		v := e.GetKey() + "=" + string(e.GetValue())
		switch {
		case e.GetKey() == "" || strings.Contains(e.GetKey(), "="):
			return nil, invalid(indexed("envs", i)+".key", "%q is not the name of a variable", e.GetKey())
		case strings.ContainsRune(v, 0):
			return nil, invalid(indexed("envs", i), "%q contains a NUL byte", e.GetKey())
		}
		set(v)
	}
	return all, nil
}

// user decides who the process is; it also supplies HOME.
func (g *generator) user() error {
	req, err := g.userRequest()
	if err != nil {
		return err
	}
	u, err := g.User(req)
	if name := g.security.GetRunAsUsername(); err == nil && name != "" && u.Name == "" { // a number, for which USER of an image needs no entry
		err = &user.NotFoundError{Kind: "user", Name: name, File: "/etc/passwd"}
	}
	var missing *user.NotFoundError
	if errors.As(err, &missing) && req.User != "" && req.User == g.security.GetRunAsUsername() {
		return because("linux.security_context.run_as_username", err)
	}
	if err != nil {
		return fmt.Errorf("find the container's user: %w", err)
	}
	p := g.spec.Process
	p.User = specs.User{UID: u.UID, GID: u.GID, AdditionalGids: u.Additional}
	if err := g.umaskAnnotation(); err != nil {
		return err
	}
	if !slices.ContainsFunc(p.Env, func(v string) bool { return strings.HasPrefix(v, "HOME=") }) {
		p.Env = append(p.Env, "HOME="+u.Home)
	}
	return nil
}

func (g *generator) userRequest() (user.Request, error) {
	const field = "linux.security_context."
	s := g.security
	req := user.Request{User: g.Image.Config.User}
	var err error
	if req.UID, err = identity(field+"run_as_user", s.GetRunAsUser()); err != nil {
		return req, err
	}
	if req.GID, err = identity(field+"run_as_group", s.GetRunAsGroup()); err != nil {
		return req, err
	}
	name := s.GetRunAsUsername()
	switch {
	case req.UID != nil && name != "":
		return req, invalid(field+"run_as_username", "must not be given together with run_as_user")
	case req.GID != nil && req.UID == nil && name == "":
		return req, invalid(field+"run_as_group", "needs run_as_user or run_as_username")
	case strings.ContainsAny(name, ":\n\x00"):
		return req, invalid(field+"run_as_username", "%q is not a user name", name)
	case name != "":
		req.User = name
	}
	for i, id := range s.GetSupplementalGroups() {
		group, err := identity(indexed(field+"supplemental_groups", i), &runtimev1.Int64Value{Value: id})
		if err != nil {
			return req, err
		}
		req.Groups = append(req.Groups, *group)
	}
	switch policy := s.GetSupplementalGroupsPolicy(); policy {
	case runtimev1.SupplementalGroupsPolicy_Merge:
	case runtimev1.SupplementalGroupsPolicy_Strict:
		req.Strict = true
	default:
		return req, invalid(field+"supplemental_groups_policy", "unknown value %d", policy)
	}
	return req, nil
}

// identity checks an id; the largest 32-bit number means "none" to the kernel.
func identity(field string, v *runtimev1.Int64Value) (*uint32, error) {
	if v == nil {
		return nil, nil
	}
	if v.GetValue() < 0 || v.GetValue() >= math.MaxUint32 {
		return nil, invalid(field, "%d is not between 0 and %d", v.GetValue(), uint32(math.MaxUint32-1))
	}
	return new(uint32(v.GetValue())), nil
}
