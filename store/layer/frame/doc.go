// Package frame keeps of a layer's archive what its unpacked form does not: the bytes between the contents of files.
//
// Archives of the same files differ in the order and spelling of headers, padding and what follows the end. The frame is
// these bytes in order, with marks where a content belongs and where it is kept now; frame and contents give the
// archive back byte for byte, so that a layer can be exported under its digest. A content that is not kept as it came
// (a sparse file, a file that a whiteout's name hides) is part of the frame.
//
// # Format
//
// "criframe", a byte with the version (1), then a zstd stream of records, each with a byte that says what it is:
//
//	1  literal: uvarint length, bytes
//	2  content at an offset: uvarint length, varint offset less the end of the last content, rounded up to 4 KiB
//	3  content of a file: uvarint length, uvarint length of its path, path
//	0  end: uvarint length of the archive
//
// A frame costs some 30 to 60 bytes a file on disk. It is not trusted to be undamaged: Copy checks what it reads, and
// who wants the layer compares its digest.
package frame
