package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	const p = `"Package":"github.com/criserver/criserver/stage"`
	for _, test := range []struct {
		name, events, skips string
		ok                  bool
		want                []string // lines, the last one first
	}{
		{name: "leaves are counted", ok: true, events: `{"Action":"pass",` + p + `,"Test":"TestA/x"}{"Action":"pass",` + p + `,"Test":"TestA/y"}{"Action":"pass",` + p + `,"Test":"TestA"}{"Action":"pass",` + p + `}`,
			want: []string{"2 passed, 0 failed, 0 skipped"}},
		{name: "failure with its output", events: `{"Action":"output",` + p + `,"Test":"TestA","Output":"broken\n"}{"Action":"fail",` + p + `,"Test":"TestA"}{"Action":"fail",` + p + `}`,
			want: []string{"0 passed, 1 failed, 0 skipped", "broken", "--- stage.TestA"}},
		{name: "test that never ended", events: `{"Action":"run",` + p + `,"Test":"TestA"}{"Action":"fail",` + p + `}`, want: []string{"0 passed, 1 failed, 0 skipped"}},
		{name: "package that does not build", events: `{"Action":"pass",` + p + `,"Test":"TestA"}{"ImportPath":"github.com/criserver/criserver/cri [x.test]","Action":"build-output","Output":"syntax\n"}{"ImportPath":"github.com/criserver/criserver/cri [x.test]","Action":"build-fail"}{"Action":"fail","Package":"github.com/criserver/criserver/cri"}`,
			want: []string{"1 passed, 1 failed, 0 skipped", "syntax", "--- cri."}},
		{name: "listed skip", ok: true, skips: "# comment\nstage.TestB needs systemd\nstage.TestC* needs a guest\n",
			events: `{"Action":"pass",` + p + `,"Test":"TestA"}{"Action":"skip",` + p + `,"Test":"TestB"}{"Action":"skip",` + p + `,"Test":"TestC/x"}`, want: []string{"1 passed, 0 failed, 2 skipped"}},
		{name: "skip that nobody listed", events: `{"Action":"pass",` + p + `,"Test":"TestA"}{"Action":"output",` + p + `,"Test":"TestB","Output":"because\n"}{"Action":"skip",` + p + `,"Test":"TestB"}`,
			want: []string{"1 passed, 1 failed, 0 skipped", "because", "--- skipped, but test/skips.txt does not say why it may be: stage.TestB"}},
		{name: "nothing ran", want: []string{"0 passed, 0 failed, 0 skipped"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			skips, events := filepath.Join(dir, "skips"), filepath.Join(dir, "events")
			write(t, skips, test.skips)
			write(t, events, strings.ReplaceAll(test.events, "}{", "}\n{"))
			var out bytes.Buffer
			ok, err := run(&out, skips, []string{events})
			if err != nil || ok != test.ok {
				t.Errorf("got %v, error %v, want %v", ok, err, test.ok)
			}
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			for i, want := range test.want {
				if j := len(lines) - 1 - i; j < 0 || lines[j] != want {
					t.Errorf("line %d from the end is not %q in:\n%s", i, want, out.String())
				}
			}
		})
	}
}

func TestSkipWithoutReason(t *testing.T) {
	file := filepath.Join(t.TempDir(), "skips")
	write(t, file, "stage.TestA\n")
	if _, err := readSkips(file); err == nil || !strings.Contains(err.Error(), "no reason is given for stage.TestA") {
		t.Errorf("got error %v", err)
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
