package main

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// The elements of a JUnit report, as Jenkins' and GitLab's readers know them.
type (
	junitSuites struct {
		XMLName xml.Name     `xml:"testsuites"`
		Suites  []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Skipped  int         `xml:"skipped,attr"`
		Time     string      `xml:"time,attr,omitempty"` // seconds
		Cases    []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Class   string       `xml:"classname,attr"`
		Name    string       `xml:"name,attr"`
		Time    string       `xml:"time,attr"`
		Failure *junitReason `xml:"failure"`
		Skipped *junitReason `xml:"skipped"`
	}
	junitReason struct {
		Message string `xml:"message,attr"`
		Output  string `xml:",chardata"`
	}
)

// writeJUnit writes a report with one suite a package and one case for each test that is counted.
func (r results) writeJUnit(name string) error {
	var all junitSuites
	for _, key := range slices.Sorted(maps.Keys(r)) {
		if !r.leaf(key) {
			continue
		}
		pkg, test, _ := strings.Cut(key, ".") // our packages have no dots in their paths
		if n := len(all.Suites); n == 0 || all.Suites[n-1].Name != pkg {
			suite := junitSuite{Name: pkg}
			if whole := r[pkg+"."]; whole != nil {
				suite.Time = seconds(whole.elapsed)
			}
			all.Suites = append(all.Suites, suite)
		}
		all.Suites[len(all.Suites)-1].add(test, r[key])
	}
	text, err := xml.MarshalIndent(all, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append([]byte(xml.Header), append(text, '\n')...), 0o644)
}

func (s *junitSuite) add(test string, one *result) {
	c := junitCase{Class: s.Name, Name: cmp.Or(test, "(package)"), Time: seconds(one.elapsed)}
	s.Tests++
	switch one.ended() {
	case "fail":
		s.Failures++
		c.Failure = &junitReason{Message: "failed", Output: one.output.String()}
	case "skip":
		s.Skipped++
		c.Skipped = &junitReason{Message: "skipped", Output: one.output.String()}
	}
	s.Cases = append(s.Cases, c)
}

func seconds(s float64) string { return fmt.Sprintf("%.3f", s) }
