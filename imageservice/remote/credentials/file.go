package credentials

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxFile bounds a config file, in bytes.
const maxFile = 1 << 20

// file is what matters of docker's config.json.
type file struct {
	Auths       map[string]entry  `json:"auths"`
	CredHelpers map[string]string `json:"credHelpers"`
	CredsStore  string            `json:"credsStore"`
}

// entry is one of auths.
type entry struct {
	Auth          string `json:"auth"` // base64 of username:password
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// parse does not look into entries, so that a wrong one matters only to whom it is for.
func parse(data []byte) (*file, error) {
	var f file
	if err := json.Unmarshal(data, &f); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) { // its text quotes the file
			return nil, fmt.Errorf("not JSON, at byte %d", syntax.Offset)
		}
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) {
			return nil, fmt.Errorf("%s is a %s, at byte %d", kind.Field, kind.Value, kind.Offset)
		}
		return nil, errors.New("not JSON")
	}
	return &f, nil
}

var errAuth = errors.New("auth is not base64 of username:password")

// credential is empty for an entry that only says that the user has logged in.
func (e entry) credential() (Credential, error) {
	c := Credential{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
	if c.Username == "" && e.Auth != "" {
		var err error
		if c.Username, c.Password, err = Decode(e.Auth); err != nil {
			return Credential{}, err
		}
	}
	return c, nil
}

// Decode takes base64 of username:password apart. Some tools append NUL bytes. The error has no part of the text.
func Decode(auth string) (username, password string, err error) {
	text, err := base64.StdEncoding.DecodeString(auth)
	if err != nil {
		return "", "", errAuth
	}
	username, password, found := strings.Cut(string(text), ":")
	if !found || username == "" {
		return "", "", errAuth
	}
	return username, strings.Trim(password, "\x00"), nil
}

// dockerHub are the names under which users and tools know one registry.
var dockerHub = []string{"docker.io", "index.docker.io", "registry-1.docker.io"}

// hubServer is what docker calls it in files and to helpers.
const hubServer = "https://index.docker.io/v1/"

// SameRegistry says whether two host[:port] are names of one registry.
func SameRegistry(a, b string) bool {
	return strings.EqualFold(a, b) || slices.Contains(dockerHub, strings.ToLower(a)) && slices.Contains(dockerHub, strings.ToLower(b))
}

// match says how well a key of the file fits a repository: -1 not at all, else the length of the path that it names. A key is
// a host, a host and the begin of a path, or a URL as docker's older versions wrote it.
func match(key, host, repository string) int {
	key, isURL := cutScheme(key)
	name, path, _ := strings.Cut(key, "/")
	path = strings.Trim(path, "/")
	if isURL && (path == "v1" || path == "v2") {
		path = ""
	}
	switch {
	case !SameRegistry(name, host):
		return -1
	case path == "" || path == repository || strings.HasPrefix(repository, path+"/"):
		return len(path)
	}
	return -1
}

func cutScheme(key string) (rest string, cut bool) {
	for _, scheme := range []string{"https://", "http://"} {
		if rest, cut = strings.CutPrefix(key, scheme); cut {
			return rest, true
		}
	}
	return key, false
}

// best returns the key that fits a repository best; of several that fit as well, the one that is spelt as the host is, then
// the first by name.
func best[V any](m map[string]V, host, repository string) (key string, found bool) {
	length := -1
	for k := range m {
		n := match(k, host, repository)
		switch {
		case n < 0 || n < length:
			continue
		case n == length && key == host || n == length && k != host && k > key:
			continue
		}
		key, length, found = k, n, true
	}
	return key, found
}
