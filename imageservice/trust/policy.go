package trust

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/distribution/reference"
)

// maxPolicy bounds a policy file and a key file, in bytes.
const maxPolicy = 1 << 20

// transports are those that a policy file may have rules for. Only docker's concern a pull, and those of archives an import.
var transports = []string{"docker", "atomic", "containers-storage", "dir", "docker-archive", "docker-daemon", "oci", "oci-archive", "ostree", "sif", "tarball"}

// Policy is a policy file that was read.
type Policy struct {
	path     string
	fallback rule
	scopes   map[string]rule // of transport docker; "" is all of it
	archives map[string]rule // of the transports of archives
}

// rule is a list of requirements, all of which an image must meet.
type rule struct {
	name         string // in messages
	requirements []requirement
}

type requirement struct {
	kind string
	meet func(context.Context, Image, *Evidence) error
}

// Load reads a policy file, and the key files that it names.
func Load(path string) (*Policy, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	p, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("policy %s: %w", path, err)
	}
	p.path = path
	return p, nil
}

// readFile reads a regular file of at most maxPolicy bytes.
func readFile(path string) (_ []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read from
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxPolicy+1))
	if err == nil && len(data) > maxPolicy {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxPolicy)
	}
	return data, err
}

func parse(data []byte) (*Policy, error) {
	fields, err := object(data)
	if err == nil {
		err = onlyKeys(fields, "default", "transports")
	}
	if err != nil {
		return nil, err
	}
	if fields["default"] == nil {
		return nil, fmt.Errorf(`key "default" is missing`)
	}
	p := &Policy{scopes: map[string]rule{}, archives: map[string]rule{}}
	if p.fallback, err = parseRule("default", fields["default"]); err != nil {
		return nil, err
	}
	if fields["transports"] == nil {
		return p, nil
	}
	byName, err := object(fields["transports"])
	if err != nil {
		return nil, fmt.Errorf("transports: %w", err)
	}
	for _, transport := range slices.Sorted(maps.Keys(byName)) {
		if !slices.Contains(transports, transport) {
			return nil, fmt.Errorf("transports: %q is unknown; known are %s", clip(transport), strings.Join(transports, ", "))
		}
		rules, err := parseScopes(transport, byName[transport])
		if err != nil {
			return nil, err
		}
		switch transport {
		case Registry:
			p.scopes = rules
		case DockerArchive, OCIArchive, OCILayout:
			if r, ok := rules[""]; ok {
				p.archives[transport] = r
			}
		}
	}
	return p, nil
}

func parseScopes(transport string, data json.RawMessage) (map[string]rule, error) {
	byScope, err := object(data)
	if err != nil {
		return nil, fmt.Errorf("transports.%s: %w", transport, err)
	}
	rules := map[string]rule{}
	for _, scope := range slices.Sorted(maps.Keys(byScope)) {
		name := fmt.Sprintf("transports.%s[%q]", transport, clip(scope))
		if err := checkScope(transport, scope); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if rules[scope], err = parseRule(name, byScope[scope]); err != nil {
			return nil, err
		}
	}
	return rules, nil
}

// checkScope refuses scopes that no image could be in, which would leave images to a rule that was not meant for them.
func checkScope(transport, scope string) error {
	switch {
	case scope == "":
		return nil
	case slices.Contains([]string{DockerArchive, OCIArchive, OCILayout}, transport):
		return fmt.Errorf("where an archive lies is not known, it may come through a pipe: the only scope is \"\"")
	case transport != Registry:
		return nil
	case strings.Contains(scope, "://"), strings.HasPrefix(scope, "/"), strings.HasSuffix(scope, "/"):
		return fmt.Errorf("not a host, repository or image, without a scheme and a / at either end")
	case strings.HasPrefix(scope, "*."):
		if strings.ContainsAny(scope[2:], "*/:@") || scope == "*." {
			return fmt.Errorf("a * stands only for the first part of a host, without a port: *.example.com")
		}
	case strings.Contains(scope, "*"):
		return fmt.Errorf("a * stands only for the first part of a host: *.example.com")
	}
	return nil
}

func parseRule(name string, data json.RawMessage) (rule, error) {
	r := rule{name: name}
	var list []json.RawMessage
	if err := json.Unmarshal(data, &list); err != nil {
		return r, fmt.Errorf("%s: not a list of requirements", name)
	}
	if len(list) == 0 {
		return r, fmt.Errorf("%s: there is no requirement; say insecureAcceptAnything if that is meant", name)
	}
	for i, one := range list {
		q, err := parseRequirement(one)
		if err != nil {
			return r, fmt.Errorf("%s: requirement %d: %w", name, i+1, err)
		}
		r.requirements = append(r.requirements, q)
	}
	return r, nil
}

func parseRequirement(data json.RawMessage) (requirement, error) {
	fields, err := object(data)
	if err != nil {
		return requirement{}, err
	}
	q := requirement{}
	if q.kind, err = text(fields["type"]); err != nil {
		return q, fmt.Errorf("type: not a string")
	}
	switch q.kind {
	case "insecureAcceptAnything":
		q.meet = func(context.Context, Image, *Evidence) error { return nil }
		err = onlyKeys(fields, "type")
	case "reject":
		q.meet = func(context.Context, Image, *Evidence) error {
			return fmt.Errorf("%w: it is rejected whatever it is", ErrRefused)
		}
		err = onlyKeys(fields, "type")
	case "sigstoreSigned":
		var s *signed
		if s, err = parseSigned(fields); err == nil {
			q.meet = s.meet
		}
	case "signedBy", "signedBaseLayer":
		err = fmt.Errorf("GPG signatures are not supported; sigstoreSigned with a key is")
	default:
		err = fmt.Errorf("the type is unknown; known are insecureAcceptAnything, reject and sigstoreSigned")
	}
	if err != nil {
		return q, fmt.Errorf("type %q: %w", clip(q.kind), err)
	}
	return q, nil
}

// ruleFor returns the rule for an image: that of its archive's transport, if there is one; else by its name: the image itself, its
// repository, what that lies in, the host, what the host lies in, all of the transport; else the default.
func (p *Policy) ruleFor(img Image) rule {
	if r, ok := p.archives[img.Transport]; ok {
		return r
	}
	if img.Name == nil {
		return p.fallback
	}
	for _, scope := range append([]string{img.Name.String()}, surrounding(img.Name)...) {
		if r, ok := p.scopes[scope]; ok {
			return r
		}
	}
	return p.fallback
}

func surrounding(name reference.Named) []string {
	var scopes []string
	scope := name.Name()
	for {
		scopes = append(scopes, scope)
		end := strings.LastIndexByte(scope, '/')
		if end < 0 {
			break
		}
		scope = scope[:end]
	}
	host, _, _ := strings.Cut(scope, ":")
	for {
		_, parent, found := strings.Cut(host, ".")
		if !found {
			return append(scopes, "")
		}
		scopes, host = append(scopes, "*."+parent), parent
	}
}

// Check says whether the policy lets the image in; the error is ErrRefused if it does not.
func (p *Policy) Check(ctx context.Context, img Image, e *Evidence) error {
	r := p.ruleFor(img)
	for i, q := range r.requirements {
		if err := q.meet(ctx, img, e); err != nil {
			return fmt.Errorf("policy %s: %s: requirement %d, %s: %w", p.path, r.name, i+1, q.kind, err)
		}
	}
	return nil
}
