// Package systemd speaks to a service manager: it makes, changes and stops transient scopes, the units in which a
// runtime with systemd's cgroup driver puts its containers.
//
// A Manager is one connection: first the manager's private socket, which needs no bus daemon (root for the system's, its
// owner for a user's), else the bus. Start returns when systemd's job has ended, so the process is in its new control
// group by then. Property holds a value in D-Bus's marshalled form; ParseProperty reads one in the text form of GVariant,
// as the annotations org.systemd.property.* have it.
//
// The client is our own because every D-Bus library for Go imports package net, which the thin binary must not hold
// (layers_test.go): all that is needed is a method call, its answer and one signal.
//
// Lifecycle: Dial -> Start | Set | Stop | ControlGroup -> Close. A Manager is not safe for concurrent use. What goes into
// the properties is package cgroup's matter.
//
// Sources: the D-Bus specification ("Message Protocol", "Authentication Protocol"), org.freedesktop.systemd1(5),
// systemd.scope(5), systemd.resource-control(5).
package systemd
