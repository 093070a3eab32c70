package apparmor

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

// DefaultProfile is the name of criserver's own profile.
const DefaultProfile = "criserver-default"

// abi is the set of rules that the profile is written for: what later ones know in addition stays unmediated, as for the
// peers' profiles. Parsers before 3.0 know no such sets.
const abi = "abi/3.0"

//go:embed profile.tmpl
var profileText string

var profileTemplate = template.Must(template.New("profile").Parse(profileText))

// text is the profile for this node.
func (h *Host) text() ([]byte, error) {
	self, err := h.self()
	if err != nil {
		return nil, err
	}
	values := struct{ Name, ABI, Self string }{Name: DefaultProfile, Self: self}
	if _, err := os.Stat(filepath.Join(h.base, abi)); err == nil {
		values.ABI = abi
	}
	var text bytes.Buffer
	if err := profileTemplate.Execute(&text, values); err != nil {
		return nil, fmt.Errorf("write AppArmor profile %s: %w", DefaultProfile, err)
	}
	return text.Bytes(), nil
}

// self is the profile that confines criserver and so every pause; "" if none does.
func (h *Host) self() (string, error) {
	label, err := os.ReadFile(h.current)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read criserver's own AppArmor profile: %w", err)
	}
	name := strings.TrimRight(string(label), "\n\x00")
	if i := strings.LastIndex(name, " ("); i >= 0 {
		name = name[:i]
	}
	if name == "unconfined" {
		return "", nil
	}
	return name, nil
}
