# Compiled into apparmor.bin by: apparmor_parser -Q -K -S --kernel-features abi/3.0 --policy-features abi/3.0 (AppArmor 3.0.8)
profile onggi-test flags=(attach_disconnected,mediate_deleted) {
  file,
  capability,
  network,
  umount,
  mount,
  signal,
  ptrace,
  deny /tmp/denied w,
}
