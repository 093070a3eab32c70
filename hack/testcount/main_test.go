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
		name, events, skips, must string
		ok                        bool
		want                      []string // lines, the last one first
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
			want: []string{"1 passed, 1 failed, 0 skipped", "because", "--- skipped, but no list says why it may be: stage.TestB"}},
		{name: "what must run has run", ok: true, must: "stage.TestA/x is why the guest is there\nstage.TestB* too\n",
			events: `{"Action":"pass",` + p + `,"Test":"TestA/x"}{"Action":"pass",` + p + `,"Test":"TestB/y"}`, want: []string{"2 passed, 0 failed, 0 skipped"}},
		{name: "what must run has not", must: "stage.TestB is why the guest is there\n", skips: "stage.TestB needs a guest\n",
			events: `{"Action":"pass",` + p + `,"Test":"TestA"}{"Action":"skip",` + p + `,"Test":"TestB"}`,
			want:   []string{"1 passed, 0 failed, 1 skipped", "--- must run and pass, but has not: stage.TestB (is why the guest is there)"}},
		{name: "nothing ran", want: []string{"0 passed, 0 failed, 0 skipped"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			c := counter{skips: filepath.Join(dir, "skips"), must: filepath.Join(dir, "must"), files: []string{filepath.Join(dir, "events")}}
			write(t, c.skips, test.skips)
			write(t, c.must, test.must)
			write(t, c.files[0], strings.ReplaceAll(test.events, "}{", "}\n{"))
			var out bytes.Buffer
			ok, err := c.run(&out)
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

func TestJUnit(t *testing.T) {
	dir := t.TempDir()
	c := counter{skips: filepath.Join(dir, "skips"), junit: filepath.Join(dir, "report.xml"), files: []string{filepath.Join(dir, "events")}}
	write(t, c.skips, "store/layer.TestB needs systemd\n")
	write(t, c.files[0], `{"Action":"pass","Package":"github.com/criserver/criserver/store/layer","Test":"TestA/x.y","Elapsed":1.5}
{"Action":"output","Package":"github.com/criserver/criserver/store/layer","Test":"TestB","Output":"a < b\n"}
{"Action":"skip","Package":"github.com/criserver/criserver/store/layer","Test":"TestB"}
{"Action":"output","Package":"github.com/criserver/criserver/stage","Test":"TestC","Output":"died\n"}
{"Action":"fail","Package":"github.com/criserver/criserver/cri","Elapsed":0.25}
`)
	if ok, err := c.run(&bytes.Buffer{}); ok || err != nil {
		t.Errorf("got %v, error %v", ok, err)
	}
	got, err := os.ReadFile(c.junit)
	if err != nil {
		t.Fatal(err)
	}
	const want = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites>
	<testsuite name="cri" tests="1" failures="1" skipped="0" time="0.250">
		<testcase classname="cri" name="(package)" time="0.250">
			<failure message="failed"></failure>
		</testcase>
	</testsuite>
	<testsuite name="stage" tests="1" failures="1" skipped="0">
		<testcase classname="stage" name="TestC" time="0.000">
			<failure message="failed">died&#xA;</failure>
		</testcase>
	</testsuite>
	<testsuite name="store/layer" tests="2" failures="0" skipped="1">
		<testcase classname="store/layer" name="TestA/x.y" time="1.500"></testcase>
		<testcase classname="store/layer" name="TestB" time="0.000">
			<skipped message="skipped">a &lt; b&#xA;</skipped>
		</testcase>
	</testsuite>
</testsuites>
`
	if string(got) != want {
		t.Errorf("report is\n%s\ninstead of\n%s", got, want)
	}
}

func TestSkipWithoutReason(t *testing.T) {
	file := filepath.Join(t.TempDir(), "skips")
	write(t, file, "stage.TestA\n")
	if _, err := readList(file); err == nil || !strings.Contains(err.Error(), "no reason is given for stage.TestA") {
		t.Errorf("got error %v", err)
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
