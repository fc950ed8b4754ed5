package main

import "syscall"

// endsWithUs has the kernel kill a process when this one is gone, however that
// happened.
func endsWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
