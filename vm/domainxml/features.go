package domainxml

import "libvirt.org/go/libvirtxml"

// features keeps the features of the machine. QEMU or KVM emulates all of them, and none refers
// to the host.
func (r *rebuilder) features(in, out *libvirtxml.Domain) error {
	if in.Features == nil || r.trusted {
		return nil
	}
	f := in.Features
	out.Features = &libvirtxml.DomainFeatureList{
		PAE:        flag(f.PAE),
		ACPI:       flag(f.ACPI),
		HAP:        state(f.HAP),
		Viridian:   flag(f.Viridian),
		HyperV:     hyperV(f.HyperV),
		KVM:        kvmFeatures(f.KVM),
		PVSpinlock: state(f.PVSpinlock),
		PMU:        state(f.PMU),
		VMPort:     state(f.VMPort),
		SMM:        smm(f.SMM),
		VMCoreInfo: state(f.VMCoreInfo),
		RAS:        state(f.RAS),
		PS2:        state(f.PS2),
	}
	if f.APIC != nil {
		out.Features.APIC = &libvirtxml.DomainFeatureAPIC{EOI: onOff(f.APIC.EOI)}
	}
	if f.GIC != nil {
		out.Features.GIC = &libvirtxml.DomainFeatureGIC{Version: oneOf(f.GIC.Version, "2", "3", "host")}
	}
	if f.IOAPIC != nil && oneOf(f.IOAPIC.Driver, "kvm", "qemu") != "" {
		out.Features.IOAPIC = &libvirtxml.DomainFeatureIOAPIC{Driver: f.IOAPIC.Driver}
	}
	if f.MSRS != nil && oneOf(f.MSRS.Unknown, "ignore", "fault") != "" {
		out.Features.MSRS = &libvirtxml.DomainFeatureMSRS{Unknown: f.MSRS.Unknown}
	}
	return nil
}

func flag(in *libvirtxml.DomainFeature) *libvirtxml.DomainFeature {
	if in == nil {
		return nil
	}
	return &libvirtxml.DomainFeature{}
}

// state keeps a switch. In libvirt, some are on without a state.
func state(in *libvirtxml.DomainFeatureState) *libvirtxml.DomainFeatureState {
	if in == nil || (in.State != "" && onOff(in.State) == "") {
		return nil
	}
	return &libvirtxml.DomainFeatureState{State: in.State}
}

func hyperV(in *libvirtxml.DomainFeatureHyperV) *libvirtxml.DomainFeatureHyperV {
	if in == nil {
		return nil
	}
	out := &libvirtxml.DomainFeatureHyperV{
		Mode:            oneOf(in.Mode, "custom", "passthrough"),
		Relaxed:         state(in.Relaxed),
		VAPIC:           state(in.VAPIC),
		VPIndex:         state(in.VPIndex),
		Runtime:         state(in.Runtime),
		Synic:           state(in.Synic),
		Reset:           state(in.Reset),
		Frequencies:     state(in.Frequencies),
		ReEnlightenment: state(in.ReEnlightenment),
		IPI:             state(in.IPI),
		EVMCS:           state(in.EVMCS),
		AVIC:            state(in.AVIC),
		EMSRBitmap:      state(in.EMSRBitmap),
		XMMInput:        state(in.XMMInput),
	}
	if s := in.Spinlocks; s != nil && onOff(s.State) != "" {
		out.Spinlocks = &libvirtxml.DomainFeatureHyperVSpinlocks{DomainFeatureState: s.DomainFeatureState}
		if s.Retries >= 4095 && s.Retries <= 1<<31 { // libvirt's minimum
			out.Spinlocks.Retries = s.Retries
		}
	}
	if s := in.STimer; s != nil && onOff(s.State) != "" {
		out.STimer = &libvirtxml.DomainFeatureHyperVSTimer{DomainFeatureState: s.DomainFeatureState, Direct: state(s.Direct)}
	}
	if s := in.VendorId; s != nil && onOff(s.State) != "" && (s.State == "off" || matching(vendorID, s.Value) != "") {
		out.VendorId = &libvirtxml.DomainFeatureHyperVVendorId{
			DomainFeatureState: s.DomainFeatureState, Value: matching(vendorID, s.Value),
		}
	}
	if s := in.TLBFlush; s != nil && onOff(s.State) != "" {
		out.TLBFlush = &libvirtxml.DomainFeatureHyperVTLBFlush{
			DomainFeatureState: s.DomainFeatureState, Direct: state(s.Direct), Extended: state(s.Extended),
		}
	}
	return out
}

func kvmFeatures(in *libvirtxml.DomainFeatureKVM) *libvirtxml.DomainFeatureKVM {
	if in == nil {
		return nil
	}
	return &libvirtxml.DomainFeatureKVM{
		Hidden:        state(in.Hidden),
		HintDedicated: state(in.HintDedicated),
		PollControl:   state(in.PollControl),
		PVIPI:         state(in.PVIPI),
	}
}

func smm(in *libvirtxml.DomainFeatureSMM) *libvirtxml.DomainFeatureSMM {
	if in == nil || (in.State != "" && onOff(in.State) == "") {
		return nil
	}
	out := &libvirtxml.DomainFeatureSMM{State: in.State}
	if t := in.TSeg; t != nil && t.Value > 0 && t.Value <= 64 && t.Unit == "MiB" {
		out.TSeg = &libvirtxml.DomainFeatureSMMTSeg{Unit: "MiB", Value: t.Value}
	}
	return out
}
