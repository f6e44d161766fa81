# One boot of the virtual machine: runs its tests and says how they went.
# BOOT and FILTER come from the kernel's command line.
cd /work
export PATH="/work/bin:$PATH"
export SYSTEMD_COLORS=0
if guest --test-threads 1 --color never ${FILTER:-"boot_$BOOT::"}; then
    verdict=passed
else
    verdict=failed
    journalctl --boot --no-pager --priority warning --lines 60
fi
echo "$verdict" >/dev/virtio-ports/verdict
