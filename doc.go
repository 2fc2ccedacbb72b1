// Package onggi is the root of the module; it holds only tests of the house as a whole. See doc/walk.md.
package onggi
