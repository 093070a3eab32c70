package sandbox

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/criserver/criserver/ociruntime/specgen"
	"github.com/criserver/criserver/store/record"
)

// A pod keeps what its handler gave through reloads and restarts; pods of the present configuration share one value.
func TestPodKeepsItsHandler(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		gives := func(id ID) *specgen.Handler {
			p, err := m.s.pod(id)
			if err != nil {
				t.Fatal(err)
			}
			return p.gives
		}
		run := func(name, handler string) ID {
			config := podConfig()
			config.Metadata.Name = name
			id, err := m.s.RunPod(t.Context(), config, handler)
			if err != nil {
				t.Fatal(err)
			}
			return id
		}
		first := run("first", "fast")
		other := twoHandlers()
		other["fast"].PidsLimit = 8
		m.s.Configure(Settings{Handlers: other})
		second, plain := run("second", "fast"), run("plain", "")
		m.s.Configure(Settings{}) // only the one that always is
		if _, err := m.s.RunPod(t.Context(), podConfig(), "fast"); !errors.Is(err, ErrInvalid) {
			t.Errorf("a handler that is gone: %v", err)
		}
		m.restart()
		if gives(first).PidsLimit != 7 || gives(second).PidsLimit != 8 || gives(plain).PidsLimit != 0 {
			t.Errorf("pids limits are %d, %d, %d", gives(first).PidsLimit, gives(second).PidsLimit, gives(plain).PidsLimit)
		}
		if now, err := m.s.handler("fast"); err != nil || now != gives(first) {
			t.Errorf("a pod does not share what the configuration has: %v", err)
		}
		for _, id := range []ID{first, second, plain} {
			if err := m.s.RemovePod(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
		m.clean()
	})
}

// What records of other criservers say, or do not say.
func TestStoredHandler(t *testing.T) {
	in(t, func(t *testing.T, m *machine) {
		plain, limited := specgen.DefaultHandler(), specgen.DefaultHandler()
		limited.PidsLimit, limited.UnprivilegedPorts = 9, false
		for text, want := range map[string]*specgen.Handler{`{}`: &plain, `{"pidsLimit":9,"unprivilegedPorts":false,"of a later criserver":1}`: &limited} {
			got, err := m.s.storedHandler("gone", json.RawMessage(text))
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("%q: %v (-want +got):\n%s", text, err, diff)
			}
		}
		for _, text := range []string{"", `{"pidsLimit":"many"}`} {
			if _, err := m.s.storedHandler("", json.RawMessage(text)); !errors.Is(err, record.ErrCorrupt) {
				t.Errorf("%q, which cannot be read: %v", text, err)
			}
		}
	})
}
