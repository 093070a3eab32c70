// Package crash runs a program, watches every change that it makes below a directory, and makes the states in which a crash
// at any of them may leave the directory.
//
// The program is traced (ptrace): it is the real one, without hooks, and what its libraries write is seen as well. One
// change is let through at a time, and after each the directory is read, so a Step is exact: its number says where a kill
// would have hit. A program that asks for the metadata of Marker(name), a file that does not exist, puts the name on the steps
// from there on.
//
// # What a power loss may leave
//
// A file's contents are safe when fsync or fdatasync of it has returned, the names in a directory after fsync of that, and
// everything after syncfs. What is not safe may be there, or not, or in part: States has the kinds. With "ordered" and "torn"
// names are lost as a journal loses them, the last ones first; "unsynced" and "contents" lose all names that were not
// synced, of each directory for itself, which no file system that we know of does, and more than POSIX promises.
//
// Not seen: writes through a shared mapping. Programs that make any are not for this package.
package crash
