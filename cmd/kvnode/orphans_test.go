//go:build !linux

package main

import "syscall"

// endsWithUs is for Linux; elsewhere a test that is killed leaves its processes
// behind.
func endsWithUs() *syscall.SysProcAttr { return nil }
