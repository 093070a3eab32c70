package stream

import "io"

// Client is what a client has opened. Streams that it did not ask for are nil.
type Client struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	TTY            bool        // a terminal, whose output is all on Stdout
	Resize         <-chan Size // closed when no more will come; may be nil
}

// Size is that of a terminal, in characters.
type Size struct{ Rows, Cols uint16 }

// Set says whether a size is one; clients that have no terminal send zeroes.
func (s Size) Set() bool { return s.Rows > 0 && s.Cols > 0 }
